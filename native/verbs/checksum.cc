// See checksum.h.
#include "verbs/checksum.h"

#include <algorithm>
#include <bit>
#include <cstring>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace quorate {

namespace {

// Odd, with bits all over; those of xxHash and SplitMix64.
constexpr uint64_t kMultiplier = 0x9e3779b185ebca87;
constexpr uint64_t kMixA = 0xbf58476d1ce4e5b9;
constexpr uint64_t kMixB = 0x94d049bb133111eb;
constexpr int kRotation = 29;
// The processor's own prefetching stops at the end of each page.
constexpr size_t kPrefetchBytes = 8192;
constexpr int kUnsafeBits = 11;  // a double has 53 of the 64
// Stays in the processor's nearest cache.
constexpr size_t kCopyBytes = 4096;

uint64_t mix(uint64_t value) {
  value = (value ^ (value >> 30)) * kMixA;
  value = (value ^ (value >> 27)) * kMixB;
  return value ^ (value >> 31);
}

// Reads it once: what is stored is what was taken, though `from` may change at any time.
inline __attribute__((always_inline)) uint64_t loadOnce(const uint8_t* from) {
  uint64_t word;
  std::memcpy(&word, from, sizeof(word));
  asm volatile("" : "+r"(word));
  return word;
}

// Past the caches, which have no use for what is only stored; the processor joins the stores to a line.
inline __attribute__((always_inline)) void storeAround(uint8_t* to, uint64_t word) {
#if defined(__x86_64__)
  _mm_stream_si64(reinterpret_cast<long long*>(to), static_cast<long long>(word));
#else
  std::memcpy(to, &word, sizeof(word));
#endif
}

// So that they are in the order of all other stores again.
inline void endStoresAround() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace

Checksum::Checksum(uint64_t before) : before_(before) {
  for (size_t lane = 0; lane < kLanes; lane++) lanes_[lane] = mix(before + (lane + 1) * kMultiplier);
}

inline __attribute__((always_inline)) void Checksum::takeWords(Lanes& lanes, const Lanes& words) {
// So that the lanes stay in registers.
#pragma GCC unroll 8
  for (size_t lane = 0; lane < kLanes; lane++) {
    lanes[lane] = std::rotl((lanes[lane] ^ words[lane]) * kMultiplier, kRotation);
  }
}

inline __attribute__((always_inline)) void Checksum::takeStripe(Lanes& lanes, const uint8_t* from) {
  Lanes words;
  std::memcpy(words, from, kStripeBytes);
  takeWords(lanes, words);
}

void Checksum::take(const uint8_t* bytes, size_t length) {
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
  Lanes lanes;
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

void Checksum::takeCopying(uint8_t* to, const uint8_t* from, size_t length) {
  if (partial_ == 0) {
    Lanes lanes;
    std::memcpy(lanes, lanes_, sizeof(lanes));
    for (; length >= kStripeBytes; length -= kStripeBytes, length_ += kStripeBytes) {
      __builtin_prefetch(from + kPrefetchBytes);
      Lanes words;
#pragma GCC unroll 8
      for (size_t lane = 0; lane < kLanes; lane++) {
        words[lane] = loadOnce(from + lane * sizeof(uint64_t));
        storeAround(to + lane * sizeof(uint64_t), words[lane]);
      }
      takeWords(lanes, words);
      from += kStripeBytes;
      to += kStripeBytes;
    }
    endStoresAround();
    std::memcpy(lanes_, lanes, sizeof(lanes));
  }
  while (length > 0) {
    const size_t bytes = std::min(length, kCopyBytes);
    std::memcpy(to, from, bytes);
    take(to, bytes);
    to += bytes;
    from += bytes;
    length -= bytes;
  }
}

uint64_t Checksum::result() const {
  Lanes lanes;
  std::memcpy(lanes, lanes_, sizeof(lanes));
  if (partial_ > 0) {
    uint8_t stripe[kStripeBytes] = {};
    std::memcpy(stripe, stripe_, partial_);
    takeStripe(lanes, stripe);
  }
  uint64_t result = mix(before_ ^ (length_ * kMultiplier));
  for (const uint64_t lane : lanes) result = mix(result ^ lane) + kMultiplier;
  return mix(result) >> kUnsafeBits;
}

}  // namespace quorate
