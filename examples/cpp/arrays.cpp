#include "arrays.hpp"

#include <zip.h>

#include <cstring>
#include <limits>
#include <memory>
#include <string_view>

#include "errors.hpp"

namespace fer_edge {
namespace {

constexpr std::size_t most_bytes = std::size_t{1} << 27;  // as fer_edge/arrays.py: 128 MiB for the arrays of one file
constexpr zip_int64_t most_members = 1000;

// A text that is eaten from its front.
struct Scanner {
  std::string_view rest;

  bool take(std::string_view expected) {
    if (rest.substr(0, expected.size()) != expected) return false;
    rest.remove_prefix(expected.size());
    return true;
  }
  bool take_number(std::size_t& value) {
    std::size_t length = 0;
    value = 0;
    while (length < rest.size() && rest[length] >= '0' && rest[length] <= '9') {
      if (length == 12) return false;
      value = value * 10 + static_cast<std::size_t>(rest[length++] - '0');
    }
    rest.remove_prefix(length);
    return length > 0;
  }
};

// "<f4" -> 4, "<U9" -> 36 bytes; 0 for what is not read here: objects, big-endian numbers.
std::size_t item_bytes(std::string_view type) {
  Scanner scanner{type};
  if (!scanner.take("<") && !scanner.take("|")) return 0;
  if (scanner.rest.empty()) return 0;
  const char kind = scanner.rest.front();
  scanner.rest.remove_prefix(1);
  std::size_t size = 0;
  if (!scanner.take_number(size) || !scanner.rest.empty() || size > (1u << 20)) return 0;
  if (kind == 'U') return 4 * size;
  if (kind == 'b' || kind == 'f' || kind == 'i' || kind == 'u') return size <= 16 ? size : 0;
  return 0;
}

// An npy file of version 1 (numpy.lib.format), its header exactly as numpy writes it. False for anything else.
bool read_npy(std::string_view content, Array& array) {
  constexpr std::string_view magic("\x93NUMPY\x01\x00", 8);
  Scanner file{content};
  if (!file.take(magic) || file.rest.size() < 2) return false;
  const auto low = static_cast<unsigned char>(file.rest[0]), high = static_cast<unsigned char>(file.rest[1]);
  const std::size_t length = low + 256u * high;
  file.rest.remove_prefix(2);
  if (file.rest.size() < length) return false;
  Scanner header{file.rest.substr(0, length)};
  file.rest.remove_prefix(length);

  if (!header.take("{'descr': '")) return false;
  const std::size_t quote = header.rest.find('\'');
  if (quote == std::string_view::npos) return false;
  array.type = std::string(header.rest.substr(0, quote));
  header.rest.remove_prefix(quote);
  if (!header.take("', 'fortran_order': ")) return false;
  array.fortran = header.take("True");
  if (!array.fortran && !header.take("False")) return false;
  if (!header.take(", 'shape': (")) return false;
  const std::size_t item = item_bytes(array.type);
  std::size_t total = item, side = 0;
  while (header.take_number(side)) {
    if (array.shape.size() == 8 || (side != 0 && total > most_bytes / side)) return false;
    total *= side;
    array.shape.push_back(side);
    if (!header.take(", ") && !header.take(",")) break;
  }
  if (!header.take("), }") || header.rest.empty() || header.rest.back() != '\n') return false;
  if (header.rest.find_first_not_of(' ') != header.rest.size() - 1) return false;
  if (item == 0 || file.rest.size() != total) return false;
  array.data = std::string(file.rest);
  return true;
}

[[noreturn]] void fail(const std::string& what) { throw Error(what + " is not what belongs there"); }

// In C's order, whichever the file has.
template <typename T>
std::vector<T> values(const Array& array, const char* type, const std::vector<std::size_t>& shape, const std::string& what) {
  if (array.type != type || array.shape != shape) fail(what);
  std::vector<T> result(array.data.size() / sizeof(T));
  if (!result.empty()) std::memcpy(result.data(), array.data.data(), result.size() * sizeof(T));
  if (array.fortran && shape.size() > 1) {
    if (shape.size() != 2) fail(what);
    const std::vector<T> columns = result;
    for (std::size_t row = 0; row < shape[0]; ++row)
      for (std::size_t column = 0; column < shape[1]; ++column)
        result[row * shape[1] + column] = columns[column * shape[0] + row];
  }
  return result;
}

void append_utf8(std::string& text, std::uint32_t code) {
  if (code < 0x80) {
    text += static_cast<char>(code);
    return;
  }
  const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
  constexpr std::uint32_t lead[] = {0, 0xC0, 0xE0, 0xF0};
  text += static_cast<char>(lead[more] | (code >> (6 * more)));
  for (int shift = 6 * (more - 1); shift >= 0; shift -= 6) text += static_cast<char>(0x80 | ((code >> shift) & 0x3F));
}

}  // namespace

std::map<std::string, Array> read_npz(const std::string& content, const std::string& file) {
  const Error unreadable(file + " is not a readable npz file");
  zip_error_t problem;
  zip_error_init(&problem);
  zip_source_t* source = zip_source_buffer_create(content.data(), content.size(), 0, &problem);
  if (source == nullptr) throw unreadable;
  const std::unique_ptr<zip_t, decltype(&zip_discard)> archive(zip_open_from_source(source, ZIP_RDONLY, &problem), zip_discard);
  zip_error_fini(&problem);
  if (archive == nullptr) {
    zip_source_free(source);
    throw unreadable;
  }
  const zip_int64_t count = zip_get_num_entries(archive.get(), 0);
  if (count < 0 || count > most_members) throw unreadable;
  std::map<std::string, Array> arrays;
  std::size_t total = 0;
  for (zip_uint64_t index = 0; index < static_cast<zip_uint64_t>(count); ++index) {
    zip_stat_t entry;
    if (zip_stat_index(archive.get(), index, 0, &entry) != 0) throw unreadable;
    constexpr zip_uint64_t needed = ZIP_STAT_NAME | ZIP_STAT_SIZE | ZIP_STAT_COMP_METHOD | ZIP_STAT_ENCRYPTION_METHOD;
    const bool plain = (entry.valid & needed) == needed && entry.encryption_method == ZIP_EM_NONE &&
                       (entry.comp_method == ZIP_CM_STORE || entry.comp_method == ZIP_CM_DEFLATE);
    if (!plain || entry.size > most_bytes - total) throw unreadable;
    total += static_cast<std::size_t>(entry.size);
    std::string name = entry.name;
    if (name.size() < 5 || name.compare(name.size() - 4, 4, ".npy") != 0) throw unreadable;
    name.resize(name.size() - 4);

    const std::unique_ptr<zip_file_t, decltype(&zip_fclose)> member(zip_fopen_index(archive.get(), index, 0), zip_fclose);
    if (member == nullptr) throw unreadable;
    // One byte more than promised: the end, where libzip compares the check sum, has to be reached.
    std::string bytes_read(static_cast<std::size_t>(entry.size) + 1, '\0');
    std::size_t done = 0;
    while (done < bytes_read.size()) {
      const zip_int64_t got = zip_fread(member.get(), bytes_read.data() + done, bytes_read.size() - done);
      if (got < 0) throw unreadable;
      if (got == 0) break;
      done += static_cast<std::size_t>(got);
    }
    Array array;
    if (done != entry.size || !read_npy(std::string_view(bytes_read).substr(0, done), array)) throw unreadable;
    if (!arrays.emplace(std::move(name), std::move(array)).second) throw unreadable;
  }
  return arrays;
}

std::vector<float> floats(const Array& array, const std::vector<std::size_t>& shape, const std::string& what) {
  return values<float>(array, "<f4", shape, what);
}

std::vector<std::uint8_t> bytes(const Array& array, const std::vector<std::size_t>& shape, const std::string& what) {
  if (array.fortran) fail(what);
  return values<std::uint8_t>(array, "|u1", shape, what);
}

double number(const Array& array, const std::string& what) {
  if (array.type == "<f4") return static_cast<double>(values<float>(array, "<f4", {}, what)[0]);
  return values<double>(array, "<f8", {}, what)[0];
}

std::vector<std::string> texts(const Array& array, std::size_t count, const std::string& what) {
  if (array.type.size() < 3 || array.type.compare(0, 2, "<U") != 0 || array.shape != std::vector<std::size_t>{count}) fail(what);
  const std::size_t length = count == 0 ? 0 : array.data.size() / 4 / count;
  std::vector<std::string> result(count);
  for (std::size_t row = 0; row < count; ++row) {
    std::size_t end = 0;  // numpy fills up with zeros
    std::vector<std::uint32_t> codes(length);
    if (length > 0) std::memcpy(codes.data(), array.data.data() + 4 * row * length, 4 * length);
    for (std::size_t place = 0; place < length; ++place)
      if (codes[place] != 0) end = place + 1;
    for (std::size_t place = 0; place < end; ++place) {
      if (codes[place] > 0x10FFFF || (codes[place] >= 0xD800 && codes[place] < 0xE000)) fail(what);
      append_utf8(result[row], codes[place]);
    }
  }
  return result;
}

}  // namespace fer_edge
