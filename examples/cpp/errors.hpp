// One kind of error, whose text is a line for people: what is wrong, in which file, what to do.
#pragma once

#include <stdexcept>

namespace fer_edge {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace fer_edge
