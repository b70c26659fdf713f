// A checksum as fast as memory: what a state transfer brings is checked as a whole, and the CRC-32 of zlib would take
// longer than bringing it. Eight lanes of 64 bits, each of which takes every eighth word by xor, a multiplication with
// an odd number and a rotation: all three can be undone, so no change of a single word goes unnoticed, and any other
// change does so with a probability of about 2^-53. It is no protection against somebody who chooses the bytes. Words
// are read as they lie in memory, little-endian on all machines that this runs on.
#include "addon/checksum.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

#include "addon/arguments.h"

namespace quorate::addon {

namespace {

constexpr size_t kLanes = 8;
constexpr size_t kStripeBytes = kLanes * sizeof(uint64_t);
// Odd, with bits all over; those of xxHash and SplitMix64.
constexpr uint64_t kMultiplier = 0x9e3779b185ebca87;
constexpr uint64_t kMixA = 0xbf58476d1ce4e5b9;
constexpr uint64_t kMixB = 0x94d049bb133111eb;
constexpr int kRotation = 29;
// The processor's own prefetching stops at the end of each page.
constexpr size_t kPrefetchBytes = 8192;
constexpr int kUnsafeBits = 11;  // a double has 53 of the 64

uint64_t mix(uint64_t value) {
  value = (value ^ (value >> 30)) * kMixA;
  value = (value ^ (value >> 27)) * kMixB;
  return value ^ (value >> 31);
}

inline __attribute__((always_inline)) void takeStripe(uint64_t (&lanes)[kLanes], const uint8_t* from) {
  uint64_t words[kLanes];
  std::memcpy(words, from, kStripeBytes);
// So that the lanes stay in registers.
#pragma GCC unroll 8
  for (size_t lane = 0; lane < kLanes; lane++) {
    lanes[lane] = std::rotl((lanes[lane] ^ words[lane]) * kMultiplier, kRotation);
  }
}

// Bytes come in pieces of any length; where they are cut makes no difference.
class Checksum {
 public:
  explicit Checksum(uint64_t before) : before_(before) {
    for (size_t lane = 0; lane < kLanes; lane++) lanes_[lane] = mix(before + (lane + 1) * kMultiplier);
  }

  void take(const uint8_t* bytes, size_t length) {
    length_ += length;
    if (partial_ > 0) {
      const size_t more = std::min(length, kStripeBytes - partial_);
      if (more == 0) return;
      std::memcpy(stripe_ + partial_, bytes, more);
      partial_ += more;
      bytes += more;
      length -= more;
      if (partial_ < kStripeBytes) return;
      takeStripe(lanes_, stripe_);
      partial_ = 0;
    }
    uint64_t lanes[kLanes];
    std::memcpy(lanes, lanes_, sizeof(lanes));
    for (; length >= kStripeBytes; length -= kStripeBytes, bytes += kStripeBytes) {
      // Of what lies there nothing is used, so it need not be of the array, nor be memory at all.
      __builtin_prefetch(bytes + kPrefetchBytes);
      takeStripe(lanes, bytes);
    }
    std::memcpy(lanes_, lanes, sizeof(lanes));
    if (length > 0) std::memcpy(stripe_, bytes, length);
    partial_ = length;
  }

  uint64_t result() {
    if (partial_ > 0) {
      std::memset(stripe_ + partial_, 0, kStripeBytes - partial_);
      takeStripe(lanes_, stripe_);
    }
    uint64_t result = mix(before_ ^ (length_ * kMultiplier));
    for (const uint64_t lane : lanes_) result = mix(result ^ lane) + kMultiplier;
    return mix(result) >> kUnsafeBits;
  }

 private:
  const uint64_t before_;
  uint64_t length_ = 0;
  uint64_t lanes_[kLanes];
  uint8_t stripe_[kStripeBytes];
  size_t partial_ = 0;
};

void takeArray(Checksum* sum, const Napi::Value& value) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) {
    throwInvalidArgument("bytes must be a Uint8Array, or an array of them");
  }
  const auto bytes = value.As<Napi::Uint8Array>();
  sum->take(bytes.Data(), bytes.ByteLength());
}

Napi::Value checksum(Environment& environment, const Napi::CallbackInfo& info) {
  Checksum sum(readInteger(info[1], "before", 0, kMaxSafeInteger));
  if (info[0].IsArray()) {
    const auto pieces = info[0].As<Napi::Array>();
    for (uint32_t index = 0; index < pieces.Length(); index++) takeArray(&sum, pieces.Get(index));
  } else {
    takeArray(&sum, info[0]);
  }
  return number(environment.env(), static_cast<double>(sum.result()));
}

}  // namespace

std::vector<napi_property_descriptor> checksumFunctions(Environment* environment) {
  return {function<checksum>(environment, "checksum")};
}

}  // namespace quorate::addon
