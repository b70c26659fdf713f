// What two processes share: the control segment of an HCA instance (one per open Context), and the bits of the
// control word through which a requester takes a responder queue pair. Everything here may be changed by a peer
// process at any moment, so every field is an atomic, and whoever reads one bounds it before use.
//
// The word is the heart of the provider. A requester starts an operation by one compare-and-swap of the responder's
// word, which at once checks that the queue pair is open and grants the right, and says which operation is under way
// on which memory region. Revocation changes the word (or the region's tag) and then looks whether an operation is
// under way: both sides use sequentially consistent accesses, so either the requester sees the revocation or the
// revoker sees the operation (Dekker).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "verbs/verbs.h"

namespace quorate::shm {

constexpr uint64_t kControlMagic = 0x314c54434d485351ull;  // "QSHMCTL1"
constexpr uint32_t kControlVersion = 7;

// Limits of one HCA instance. They fix the size of the control segment (about 4 MiB).
constexpr uint32_t kQueuePairIndexBits = 10;
constexpr uint32_t kMaxQueuePairs = 1u << kQueuePairIndexBits;
constexpr uint32_t kRegionIndexBits = 12;
constexpr uint32_t kMaxMemoryRegions = 1u << kRegionIndexBits;
// A key is random:12 | index:12 | key:8; the lowest 8 bits of a memory window's key are its user's to choose.
constexpr uint32_t kKeyBits = 8;
constexpr uint32_t kKeyMask = (1u << kKeyBits) - 1;
constexpr uint32_t regionIndexOf(uint32_t key) {
  return key >> kKeyBits & (kMaxMemoryRegions - 1);
}
constexpr uint32_t kMaxMemories = 512;
constexpr uint32_t kMaxCompletionQueues = 512;
constexpr uint32_t kMaxReceiveWr = 4096;             // per queue pair
constexpr uint32_t kReceiveArenaEntries = 1u << 16;  // of all queue pairs together
constexpr uint32_t kMaxSge = 16;                     // scatter/gather elements of a request
constexpr uint32_t kScatterEntries = 1u << 14;       // elements of receives that have several, all queues together
constexpr uint32_t kMaxSharedReceiveQueues = 64;
constexpr uint32_t kSharedReceiveEntries = 1u << 14;  // of all shared receive queues together
constexpr uint32_t kMaxMulticastEntries = 256;        // attachments of queue pairs to groups
constexpr uint32_t kMaxSendWr = 16384;
constexpr int kMaxCqe = 1 << 20;
constexpr uint32_t kMaxInlineBytes = 1024;
constexpr uint32_t kMaxMessageBytes = 1u << 30;
constexpr uint32_t kMaxDatagramBytes = 4096;  // the MTU of the port
constexpr uint32_t kOwnQkey = 1u << 31;       // in a request: send the queue pair's own qkey
constexpr uint32_t kMaxPathBytes = 440;
constexpr int kMaxRdAtomic = 128;
constexpr uint64_t kMaxMemoryBytes = 1ull << 40;

// The word is taken anew for each chunk, so that a revocation never waits for more than one.
constexpr uint32_t kChunkBytes = 64 * 1024;

enum class OperationKind : uint32_t { None = 0, Read = 1, Write = 2, Atomic = 3, Send = 4 };

// Can this operation store into the responder's memory?
constexpr bool storesIntoTarget(OperationKind kind) {
  return kind != OperationKind::None && kind != OperationKind::Read;
}

// ---------------------------------------------------------------------------------------------------------------
// The responder word:  sequence:11 | connection:16 | received:16 | region:12 | kind:3 | atomic read write stuck
// error open
namespace word {

constexpr uint64_t kOpen = 1u << 0;    // RTR or RTS: operations are accepted
constexpr uint64_t kError = 1u << 1;   // the queue pair is in ERR, or a requester put it there
constexpr uint64_t kStuck = 1u << 2;   // an operation was passed over; its requester has not noticed yet
constexpr uint64_t kWrite = 1u << 3;   // remote WRITE is granted
constexpr uint64_t kRead = 1u << 4;    // remote READ is granted
constexpr uint64_t kAtomic = 1u << 5;  // remote CAS and FAA are granted
constexpr uint64_t kRights = kWrite | kRead | kAtomic;

constexpr unsigned kKindShift = 6;
constexpr uint64_t kKindMask = 7ull << kKindShift;  // not None: busy
constexpr unsigned kRegionShift = 9;
constexpr uint64_t kRegionMask = uint64_t{kMaxMemoryRegions - 1} << kRegionShift;
constexpr unsigned kReceivedShift = 21;  // receive requests completed, modulo 2^16: publishes their completions
constexpr uint64_t kReceivedMask = 0xffffull << kReceivedShift;
constexpr unsigned kConnectionShift = 37;  // counts the connections of the slot: never goes back
constexpr uint64_t kConnectionMask = 0xffffull << kConnectionShift;
constexpr unsigned kSequenceShift = 53;  // counts operations: lets a revoker tell one from the next
constexpr uint64_t kSequenceUnit = 1ull << kSequenceShift;
constexpr uint64_t kOperationMask = ~uint64_t{0} << kConnectionShift;  // connection and sequence: which operation

constexpr bool busy(uint64_t w) {
  return (w & kKindMask) != 0;
}
constexpr OperationKind kind(uint64_t w) {
  return static_cast<OperationKind>((w & kKindMask) >> kKindShift);
}
constexpr uint32_t region(uint64_t w) {
  return static_cast<uint32_t>((w & kRegionMask) >> kRegionShift);
}
constexpr uint16_t received(uint64_t w) {
  return static_cast<uint16_t>((w & kReceivedMask) >> kReceivedShift);
}
constexpr uint64_t idle(uint64_t w) {
  return w & ~(kKindMask | kRegionMask);
}
constexpr uint64_t withOneMoreReceived(uint64_t w) {
  return (w & ~kReceivedMask) | ((w + (1ull << kReceivedShift)) & kReceivedMask);
}
constexpr uint64_t taken(uint64_t w, OperationKind operation, uint32_t regionIndex) {
  return (idle(w) | uint64_t{static_cast<uint32_t>(operation)} << kKindShift |
          uint64_t{regionIndex & (kMaxMemoryRegions - 1)} << kRegionShift) +
         kSequenceUnit;
}
constexpr uint64_t withRegion(uint64_t w, uint32_t regionIndex) {
  return (w & ~kRegionMask) | uint64_t{regionIndex & (kMaxMemoryRegions - 1)} << kRegionShift;
}
constexpr bool sameOperation(uint64_t a, uint64_t b) {
  return busy(a) && busy(b) && ((a ^ b) & kOperationMask) == 0;
}
constexpr uint64_t withNextConnection(uint64_t w) {
  return (w & ~kConnectionMask) | ((w + (1ull << kConnectionShift)) & kConnectionMask);
}

}  // namespace word

// ---------------------------------------------------------------------------------------------------------------
// Tables of the control segment. Two cache lines per hot part: adjacent lines are fetched in pairs.

struct alignas(128) QueuePairSlot {
  std::atomic<uint64_t> word;
  std::atomic<uint32_t> expectedPsn;  // what the requester must start with; advanced by the connected requester

  alignas(128) std::atomic<uint32_t> number;  // 0: no queue pair here
  std::atomic<uint32_t> postedReceives;       // receive requests posted, modulo 2^32
  std::atomic<uint64_t> peerHca;              // who may operate on this queue pair: (HCA, queue pair number)
  std::atomic<uint32_t> peerNumber;
  std::atomic<uint32_t> protectionDomain;
  std::atomic<uint32_t> receiveCq;        // index of the CQ to ring
  std::atomic<uint32_t> receiveBase;      // ring of receive requests: first entry in the arena
  std::atomic<uint32_t> receiveCapacity;  // power of two, or 0
  std::atomic<uint32_t> minRnrTimer;
  std::atomic<uint32_t> type;            // a QpType
  std::atomic<uint32_t> qkey;            // UD: what a datagram must carry
  std::atomic<uint32_t> sharedQueue;     // number of its shared receive queue and 1; 0: none
  std::atomic<uint32_t> claimedReceive;  // see receive_claim; by who holds the word
  std::atomic<uint32_t> scatterBase;     // elements of receives: first entry in the arena
  std::atomic<uint32_t> maxSge;          // elements of each receive; 1: none is in the arena
  std::atomic<uint64_t> sender;          // UD: the process that delivers a datagram, see datagram.cc; 0: none
};
static_assert(sizeof(QueuePairSlot) == 256);

// A posted receive request (written by the responder) and its completion (written by the requester, published by the
// word's count of completed receives).
struct ReceiveEntry {
  std::atomic<uint64_t> address;  // with a shared receive queue: which of its receives this completes
  std::atomic<uint32_t> length;   // of all elements together; in the completion: its time, low half
  std::atomic<uint32_t> lkey;     // in the completion: its time, high half
  std::atomic<uint32_t> byteLen;
  std::atomic<uint32_t> immData;
  std::atomic<uint32_t> info;   // posted: number of elements; completed: status | flags
  std::atomic<uint32_t> srcQp;  // UD: who sent it
};
static_assert(sizeof(ReceiveEntry) == 32);
constexpr uint32_t kReceiveStatusMask = 0xff;
constexpr uint32_t kReceiveWithImm = 1u << 8;
constexpr uint32_t kReceiveOfWrite = 1u << 9;   // consumed by WRITE_WITH_IMM, not by SEND
constexpr uint32_t kReceiveWithGrh = 1u << 10;  // a datagram: the routing header is in front of it
constexpr uint32_t kReceiveWithInv = 1u << 11;  // immData is the key that was invalidated

// One element of a receive that has several: those of the receive at position p of its queue begin at
// scatterBase + p * maxSge.
struct ScatterEntry {
  std::atomic<uint64_t> address;
  std::atomic<uint32_t> length;
  std::atomic<uint32_t> lkey;
};
static_assert(sizeof(ScatterEntry) == 16);

// See shared_receive_queue.h.
struct alignas(128) SharedReceiveQueueSlot {
  std::atomic<uint32_t> base;
  std::atomic<uint32_t> capacity;  // power of two; 0: no queue here
  std::atomic<uint32_t> posted;    // positions of `order` that are filled, modulo 2^32
  std::atomic<uint32_t> claimed;   // positions that are claimed
  std::atomic<uint32_t> limit;
  std::atomic<uint32_t> limitReached;
  std::atomic<uint32_t> scatterBase;  // as for queue pairs
  std::atomic<uint32_t> maxSge;
};
struct SharedReceiveEntry {
  std::atomic<uint64_t> address;
  std::atomic<uint32_t> length;
  std::atomic<uint32_t> lkey;
  std::atomic<uint32_t> owner;  // slot of the queue pair that claimed it and 1; unclaimedAt(); kFreeReceive: not posted
  std::atomic<uint32_t> order;  // of another entry: the one to be claimed at this position
  std::atomic<uint32_t> sgeCount;
};
constexpr uint32_t kFreeReceive = ~0u;
// Which receive of its shared queue the next message to a queue pair fills: that receive and 1 in the low half, 0: none;
// in the high half the word's count of completed receives when it was claimed, so that the claim ends with the message,
// at the moment at which that is published. Written before the receive is claimed: it holds if the receive says so, too.
// Whoever claims may die at any moment, and with UD the next sender goes on from there.
namespace receive_claim {
static_assert(kMaxReceiveWr < 0xffff);
constexpr uint32_t make(uint64_t word, uint32_t entry) {
  return uint32_t{word::received(word)} << 16 | (entry + 1);
}
constexpr uint32_t entryPlusOne(uint32_t claim) {
  return claim & 0xffff;
}
constexpr bool isOf(uint32_t claim, uint64_t word) {
  return claim >> 16 == word::received(word) && entryPlusOne(claim) != 0;
}
}  // namespace receive_claim
// Nobody claimed it yet, and it is to be claimed at this position only: who looked at an earlier one and was held up
// must not take it out of turn when it was posted again.
constexpr uint32_t unclaimedAt(uint32_t position) {
  return 1u << 31 | (position & ~(3u << 30));
}

struct MulticastEntry {
  std::atomic<uint64_t> groupHigh, groupLow;  // of the GID, in network byte order
  std::atomic<uint32_t> queuePair;            // number; 0: unused
};

namespace region_tag {
constexpr uint64_t kValid = 1u << 0;
constexpr uint64_t kMoving = 1u << 1;          // its memory is on the way to a fresh segment: wait
constexpr uint64_t kGenerationUnit = 1u << 2;  // bits 2..31 count changes of the slot
constexpr uint64_t kGenerationMask = 0xfffffffcull;
constexpr uint32_t key(uint64_t tag) {
  return static_cast<uint32_t>(tag >> 32);
}
constexpr uint64_t make(uint32_t key, uint64_t previous, uint64_t flags) {
  return uint64_t{key} << 32 | ((previous + kGenerationUnit) & kGenerationMask) | flags;
}
}  // namespace region_tag

struct alignas(64) RegionSlot {
  std::atomic<uint64_t> tag;  // key | generation | flags; the other fields only change while it is not valid
  std::atomic<uint64_t> address;
  std::atomic<uint64_t> length;
  std::atomic<uint64_t> segmentOffset;
  std::atomic<uint64_t> segmentId;
  std::atomic<uint32_t> access;
  std::atomic<uint32_t> protectionDomain;
  std::atomic<uint32_t> memory;  // index of the memory slot
  // A memory window of type 2: number of the queue pair that it was bound through, and may be used through. Else 0.
  std::atomic<uint32_t> queuePair;
};
static_assert(sizeof(RegionSlot) == 64);

// Where the bytes are: the file of a memory's present segment. Without a path it is the segment file of this HCA in
// the provider's directory.
struct alignas(64) MemorySlot {
  std::atomic<uint64_t> segmentId;
  std::atomic<uint64_t> length;
  std::atomic<uint32_t> pathBytes;
  std::atomic<uint8_t> path[kMaxPathBytes];
};
static_assert(sizeof(MemorySlot) == 512);

// `armed` holds one of these in its lowest bits and counts armings above, also those of the slot's former users: an
// event that was written for one arming must not undo the next.
enum class Armed : uint32_t { No = 0, Any = 1, SolicitedOnly = 2 };
constexpr uint32_t kArmedMask = 3;
constexpr uint32_t kArmedUnit = 4;
constexpr Armed armedFor(uint32_t armed) {
  return static_cast<Armed>(armed & kArmedMask);
}
constexpr uint32_t armingOf(uint32_t armed) {
  return armed / kArmedUnit;
}
// Was `arming` the later one? The count wraps around.
constexpr bool isLaterArming(uint32_t arming, uint32_t than) {
  return static_cast<int32_t>((arming - than) * kArmedUnit) > 0;
}

struct alignas(128) CompletionQueueSlot {
  std::atomic<uint32_t> doorbell;  // a futex; counts receive completions and errors: "look at your queue pairs"
  std::atomic<uint32_t> armed;
  std::atomic<uint32_t> channel;     // number of the channel's FIFO; 0: none
  std::atomic<uint32_t> sleepers;    // threads of the owner that sleep on the doorbell, or are about to
  std::atomic<uint32_t> timestamps;  // a Timestamps: what requesters leave in completions
  std::atomic<uint32_t> unsent;      // 1: it is armed, and its event found the FIFO full
};
static_assert(sizeof(CompletionQueueSlot) == 128);

struct ControlHeader {
  std::atomic<uint64_t> magic;
  std::atomic<uint32_t> version;
  std::atomic<uint32_t> pid;
  std::atomic<uint64_t> startTime;  // of the process, in clock ticks since boot: tells a reused pid
  std::atomic<uint64_t> pidNamespace;
  std::atomic<uint64_t> hcaId;
  std::atomic<uint64_t> totalBytes;
  std::atomic<uint32_t> asyncChannel;  // number of the FIFO of asynchronous events; 0: none
  // The id of the thread that holds this HCA instance, as a robust futex: the kernel sets FUTEX_OWNER_DIED when that
  // thread dies without having let go. 0: closed in good order.
  alignas(128) std::atomic<uint32_t> liveness;
};

// Has the process that claimed this UD queue pair's slot surely exited? (datagram.cc)
bool senderHasExited(const ControlHeader& header, const QueuePairSlot& slot);

struct ControlSegment {
  alignas(4096) ControlHeader header;
  alignas(4096) QueuePairSlot queuePairs[kMaxQueuePairs];
  RegionSlot regions[kMaxMemoryRegions];
  MemorySlot memories[kMaxMemories];
  CompletionQueueSlot completionQueues[kMaxCompletionQueues];
  ReceiveEntry receives[kReceiveArenaEntries];
  SharedReceiveQueueSlot sharedQueues[kMaxSharedReceiveQueues];
  SharedReceiveEntry sharedReceives[kSharedReceiveEntries];
  MulticastEntry multicast[kMaxMulticastEntries];
  ScatterEntry scatter[kScatterEntries];
};

static_assert(std::atomic<uint64_t>::is_always_lock_free && std::atomic<uint32_t>::is_always_lock_free &&
              std::atomic<uint8_t>::is_always_lock_free);

// A GID of this provider: a unique-local prefix that spells it out, then the HCA's 64-bit random id.
Gid makeGid(uint64_t hcaId);
bool parseGid(const Gid& gid, uint64_t* hcaId);

}  // namespace quorate::shm
