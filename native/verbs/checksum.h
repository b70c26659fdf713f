// A checksum as fast as memory: what a state transfer brings is checked as a whole, and the CRC-32 of zlib would take
// longer than bringing it. Eight lanes of 64 bits, each of which takes every eighth word by xor, a multiplication with
// an odd number and a rotation: all three can be undone, so no change of a single word goes unnoticed, and any other
// change does so with a probability of about 2^-53. It is no protection against somebody who chooses the bytes. Words
// are read as they lie in memory, little-endian on all machines that this runs on.
#pragma once

#include <cstddef>
#include <cstdint>

namespace quorate {

// Bytes come in pieces of any length; where they are cut makes no difference.
class Checksum {
 public:
  // `before`: of what came before these bytes, 0 if nothing did.
  explicit Checksum(uint64_t before = 0);

  void take(const uint8_t* bytes, size_t length);
  // As take(), and copies them: what is taken is what is stored, even if somebody writes to `from` meanwhile. Costs no
  // more than a copy, since both take what memory takes. The two ranges do not overlap.
  void takeCopying(uint8_t* to, const uint8_t* from, size_t length);
  // Of all bytes so far, in 53 bits.
  uint64_t result() const;

 private:
  static constexpr size_t kLanes = 8;
  static constexpr size_t kStripeBytes = kLanes * sizeof(uint64_t);
  using Lanes = uint64_t[kLanes];
  static void takeWords(Lanes& lanes, const Lanes& words);
  static void takeStripe(Lanes& lanes, const uint8_t* from);

  uint64_t before_;
  uint64_t length_ = 0;
  Lanes lanes_;
  uint8_t stripe_[kStripeBytes];
  size_t partial_ = 0;
};

}  // namespace quorate
