// The checksum that is computed on the way: it is that of what was stored, and what is stored is what was there.
#include "verbs/checksum.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

namespace quorate::test {
namespace {

TEST_CASE("checksum: taking bytes while they are copied gives what taking them does, and copies them") {
  std::mt19937 random(20261130);
  std::vector<uint8_t> from(20'000), to(20'000);
  for (uint8_t& byte : from) byte = static_cast<uint8_t>(random());
  for (int round = 0; round < 2000; round++) {
    const uint64_t before = random();
    Checksum apart(before), copying(before);
    std::fill(to.begin(), to.end(), uint8_t{0xee});
    // Several pieces, of lengths with and without a rest, at places that are and are not aligned.
    size_t source = random() % 64, target = random() % 64;
    if (round % 2 == 0) source &= ~size_t{7}, target &= ~size_t{7};
    for (int piece = 0; piece < 3; piece++) {
      const size_t length = random() % (round % 3 == 0 ? 6000 : 300);
      apart.take(from.data() + source, length);
      copying.takeCopying(to.data() + target, from.data() + source, length);
      REQUIRE(std::memcmp(to.data() + target, from.data() + source, length) == 0);
      REQUIRE(to[target + length] == 0xee);
      REQUIRE(copying.result() == apart.result());
      source += length;
      target += length;
    }
  }
}

TEST_CASE("checksum: a result that was asked for changes nothing of what follows") {
  const uint8_t bytes[100] = {1, 2, 3};
  Checksum once(5), twice(5);
  once.take(bytes, 77);
  twice.take(bytes, 40);
  CHECK(twice.result() != once.result());
  twice.take(bytes + 40, 37);
  CHECK(twice.result() == once.result());
}

}  // namespace
}  // namespace quorate::test
