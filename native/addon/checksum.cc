// A checksum as fast as memory: what a state transfer brings is checked as a whole, and the CRC-32 of zlib would take
// longer than bringing it. Eight lanes of 64 bits, each of which takes every eighth word by xor, a multiplication with
// an odd number and a rotation: all three can be undone, so no change of a single word goes unnoticed, and any other
// change does so with a probability of about 2^-53. It is no protection against somebody who chooses the bytes. Words
// are read as they lie in memory, little-endian on all machines that this runs on.
#include "addon/checksum.h"

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

uint64_t checksumOf(const uint8_t* bytes, size_t length, uint64_t before) {
  uint64_t lanes[kLanes];
  for (size_t lane = 0; lane < kLanes; lane++) lanes[lane] = mix(before + (lane + 1) * kMultiplier);
  size_t at = 0;
  for (; length - at >= kStripeBytes; at += kStripeBytes) takeStripe(lanes, bytes + at);
  if (at < length) {
    uint8_t last[kStripeBytes] = {};
    std::memcpy(last, bytes + at, length - at);
    takeStripe(lanes, last);
  }
  uint64_t result = mix(before ^ (static_cast<uint64_t>(length) * kMultiplier));
  for (const uint64_t lane : lanes) result = mix(result ^ lane) + kMultiplier;
  return mix(result) >> kUnsafeBits;
}

Napi::Value checksum(Environment& environment, const Napi::CallbackInfo& info) {
  if (!info[0].IsTypedArray() || info[0].As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) {
    throwInvalidArgument("bytes must be a Uint8Array");
  }
  const auto bytes = info[0].As<Napi::Uint8Array>();
  const uint64_t before = readInteger(info[1], "before", 0, kMaxSafeInteger);
  const uint64_t result = checksumOf(bytes.Data(), bytes.ByteLength(), before);
  return Napi::Number::New(environment.env(), static_cast<double>(result));
}

}  // namespace

std::vector<napi_property_descriptor> checksumFunctions(Environment* environment) {
  return {function<checksum>(environment, "checksum")};
}

}  // namespace quorate::addon
