// Which error a call ends with.
#pragma once

#include <string>
#include <utility>

#include "verbs/verbs.h"

namespace quorate::test {

// The code of the VerbsError that `call` throws; "" if it throws none.
template <typename Call>
std::string codeOf(Call&& call) {
  try {
    std::forward<Call>(call)();
  } catch (const VerbsError& error) {
    return error.code;
  }
  return "";
}

}  // namespace quorate::test
