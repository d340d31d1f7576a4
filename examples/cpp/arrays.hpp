// numpy's npz files: a zip of npy arrays, read from memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace fer_edge {

// One array as numpy wrote it: `type` is numpy's name ("<f4", "|u1", "<U9"), `data` little-endian values, in the order of
// Fortran (the first index runs fastest) when `fortran` is set.
struct Array {
  std::string type;
  std::vector<std::size_t> shape;
  bool fortran = false;
  std::string data;
};

// All arrays of an npz file's content, by name without ".npy". `file` names it in errors. Throws Error.
std::map<std::string, Array> read_npz(const std::string& content, const std::string& file);

// The values of an array, whose type and shape have to be these; in C's order. Throws Error.
std::vector<float> floats(const Array& array, const std::vector<std::size_t>& shape, const std::string& what);
std::vector<std::uint8_t> bytes(const Array& array, const std::vector<std::size_t>& shape, const std::string& what);
double number(const Array& array, const std::string& what);
std::vector<std::string> texts(const Array& array, std::size_t count, const std::string& what);

}  // namespace fer_edge
