// The hot path: work requests described as doubles in an array that JavaScript writes, posted and polled by one call
// that allocates nothing. The layout is that of lib/verbs/native.ts (WR_STRIDE, WC_STRIDE, WR, WC). Nothing in the
// arrays is trusted: a field that is no valid number of its kind makes that request fail with EINVAL, it cannot make
// the process touch memory that is not its own to touch.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <memory>
#include <vector>

#include "addon/fence.h"
#include "verbs/verbs.h"

namespace quorate::addon {

constexpr size_t kWrStride = 16;
constexpr size_t kWcStride = 12;
constexpr size_t kPostListSlots = 64;
constexpr size_t kPostListMaxEntries = 65536;
constexpr uint64_t kMaxSpinNs = 10'000'000'000;
// Arguments and result of a submit, in the array that JavaScript shares: CALL of lib/verbs/native.ts.
enum CallField : size_t { kCallCount = 0, kCallSpinNs = 1, kCallWanted = 2, kCallFilled = 3, kCallFields = 4 };
// Bit of a request's send flags: no completion if it succeeds.
constexpr uint32_t kPostUnsignaled = 1u << 16;
constexpr int kOpFencedCopy = 100;
constexpr int kStatusPostRefused = 1000;
constexpr int kStatusFenced = 1001;

// The integer in a double; false if it is none, negative, or not below `limit` (at most 2^53). By its bits and not by
// converting it there and back: a request has a dozen of these, and floating point is what an emulated or small
// processor is slowest at. (-0 is 0.)
inline bool toInteger(double value, uint64_t limit, uint64_t* out) {
  constexpr int kFractionBits = 52, kExponentOfOne = 1023;
  constexpr uint64_t kImplicitBit = 1ull << kFractionBits;
  const uint64_t bits = std::bit_cast<uint64_t>(value);
  if (bits << 1 == 0) {
    *out = 0;
    return limit > 0;
  }
  // Negative numbers, infinities, NaN and 2^53 or more have a larger exponent field (with the sign in front of it).
  const uint64_t exponent = bits >> kFractionBits;
  if (exponent < kExponentOfOne || exponent > kExponentOfOne + kFractionBits) return false;
  const unsigned shift = static_cast<unsigned>(kExponentOfOne + kFractionBits - exponent);
  const uint64_t significand = (bits & (kImplicitBit - 1)) | kImplicitBit;
  *out = significand >> shift;
  return *out << shift == significand && *out < limit;
}

// Belongs to one thread. The objects bound to it may be used by others at the same time.
class PostList : public VerbsObject {
 public:
  PostList(std::shared_ptr<CompletionQueue> completionQueue, size_t maxWorkRequests, size_t maxCompletions);

  const char* kind() const override { return "PostList"; }
  void close() override;
  bool closed() const override { return closed_; }

  double* workRequests() { return workRequests_.data(); }
  double* call() { return call_.data(); }
  double* completions() { return completions_.data(); }
  size_t maxWorkRequests() const { return maxWorkRequests_; }
  size_t maxCompletions() const { return maxCompletions_; }

  void bindQueuePair(size_t slot, std::shared_ptr<QueuePair> queuePair);
  void bindAddressHandle(size_t slot, std::shared_ptr<AddressHandle> addressHandle);
  void bindFence(size_t slot, std::shared_ptr<Fence> fence);
  void bindMemory(size_t slot, std::shared_ptr<Memory> memory);

  // See PostList.submit in lib/verbs/post-list.ts. count <= maxWorkRequests, wanted <= maxCompletions, spinNs <=
  // kMaxSpinNs.
  size_t submit(size_t count, uint64_t spinNs, size_t wanted);

 private:
  // Fills staged_[index] from the array; an errno if the request is malformed, else 0.
  int decode(const double* request, size_t slot, SendWorkRequest* out) const;
  void postBatch(size_t slot, size_t count);
  // True if the requests behind it may go out.
  bool fencedCopy(const double* request);
  bool inBoundMemory(uint64_t address, uint64_t length) const;
  void complete(double wrId, int status, int opcode, uint32_t byteLen, uint32_t qpNum, uint32_t vendorErr);
  // Takes what the queue holds now, as far as there is room.
  void pollOnce();

  const size_t maxWorkRequests_, maxCompletions_;
  std::vector<double> workRequests_, completions_;
  std::array<double, kCallFields> call_{};
  std::vector<SendWorkRequest> staged_;
  std::vector<WorkCompletion> polled_;
  std::shared_ptr<CompletionQueue> completionQueue_;
  std::array<std::shared_ptr<QueuePair>, kPostListSlots> queuePairs_;
  std::array<std::shared_ptr<AddressHandle>, kPostListSlots> addressHandles_;
  std::array<std::shared_ptr<Fence>, kPostListSlots> fences_;
  std::array<std::shared_ptr<Memory>, kPostListSlots> memories_;
  uint64_t datagramSlots_ = 0;  // slots that hold UD queue pairs
  size_t memorySlotsUsed_ = 0;  // slots at and above this are empty
  size_t filled_ = 0;           // completions in the array, during submit
  // Queue pairs that refused a request in this submit, and why.
  uint64_t refusedSlots_ = 0;
  std::array<int, kPostListSlots> refusedErrno_{};
  bool closed_ = false;
};

}  // namespace quorate::addon
