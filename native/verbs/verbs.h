// The verbs object model of quorate, as abstract C++ classes. Two providers implement it: `ibverbs` (the
// kernel's RDMA devices, through a libibverbs that is opened at run time) and `shm` (a software HCA in POSIX
// shared memory for the processes of one host). The Node-API layer (native/addon) and the C++ tests see only
// these classes. Nothing at or below this file may include napi.h.
//
// Names and meanings follow the libibverbs man pages (ibv_open_device(3), ibv_modify_qp(3), ...). Numbers of
// enumerations equal those of <infiniband/verbs.h>, so that the ibverbs provider passes them through, but the
// header itself is not needed to build against this one.
//
// Ownership: every object is held by std::shared_ptr and holds a shared_ptr to its parent, so a parent outlives
// its children. close() ends an object explicitly: it is idempotent, closes the children first, waits until no
// other thread is inside a call on the object, and leaves every later call to fail with code QUORATE_CLOSED.
// All methods may be called from any thread of the process.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "verbs/extended_device_attributes.h"

namespace quorate {

// ---------------------------------------------------------------------------------------------------------------
// Errors

// What every failing call throws. `code` is stable and machine-readable; `errnum` is 0 where no system call was
// involved; `syscall` names the verb or system call ("ibv_modify_qp", "mmap"). `message` says what happened, to
// what, and what to do about it.
//
// Codes: QUORATE_CLOSED (object was closed), QUORATE_INVALID_ARGUMENT, QUORATE_OUT_OF_RANGE,
// QUORATE_NO_LIBRARY (libibverbs missing), QUORATE_NO_DEVICE, QUORATE_NO_GID, QUORATE_UNSUPPORTED (device or
// provider lacks the capability), QUORATE_MEMLOCK (RLIMIT_MEMLOCK too small), QUORATE_LIMIT (a table or queue of
// stated size is full), QUORATE_QP_STATE (transition not allowed, or attributes missing/surplus for it),
// QUORATE_REVOKE_FAILED (a right could not be proven revoked), QUORATE_SYSTEM (any other errno).
class VerbsError : public std::runtime_error {
 public:
  VerbsError(std::string code, const std::string& message, int errnum = 0, std::string syscall = {})
      : std::runtime_error(message), code(std::move(code)), errnum(errnum), syscall(std::move(syscall)) {}
  const std::string code;
  const int errnum;
  const std::string syscall;
};

// ---------------------------------------------------------------------------------------------------------------
// Enumerations (values equal those of <infiniband/verbs.h>)

enum class QpState : int { Reset = 0, Init = 1, Rtr = 2, Rts = 3, Sqd = 4, Sqe = 5, Err = 6, Unknown = 7 };
enum class QpType : int { Rc = 2, Uc = 3, Ud = 4 };
enum class PortState : int { Nop = 0, Down = 1, Init = 2, Armed = 3, Active = 4, ActiveDefer = 5 };

enum Access : uint32_t {
  kAccessLocalWrite = 1u << 0,
  kAccessRemoteWrite = 1u << 1,
  kAccessRemoteRead = 1u << 2,
  kAccessRemoteAtomic = 1u << 3,
  kAccessMwBind = 1u << 4,
  kAccessZeroBased = 1u << 5,  // addresses of the region (or type 2 window) count from 0
  kAccessOnDemand = 1u << 6,
  kAccessHugetlb = 1u << 7,
  kAccessFlushGlobal = 1u << 8,
  kAccessFlushPersistent = 1u << 9,
  kAccessRelaxedOrdering = 1u << 20,  // optional: a device that has no such thing ignores it
};
constexpr uint32_t kAllAccess = (1u << 10) - 1 + kAccessRelaxedOrdering;

enum class WrOpcode : int {
  RdmaWrite = 0,
  RdmaWriteWithImm = 1,
  Send = 2,
  SendWithImm = 3,
  RdmaRead = 4,
  CompareSwap = 5,
  FetchAdd = 6,
  LocalInv = 7,
  BindMw = 8,
  SendWithInv = 9,
};

enum SendFlags : uint32_t {
  kSendFence = 1u << 0,
  kSendSignaled = 1u << 1,
  kSendSolicited = 1u << 2,
  kSendInline = 1u << 3,
  // Not of verbs. RdmaRead, where Context::checksummedReads() says so: the completion has the checksum (verbs/checksum.h)
  // of what was READ behind bytes with that of checksumBefore; or, with the second one set too, behind what the READ
  // before brought that was posted with the first one.
  kSendChecksum = 1u << 17,
  kSendChecksumContinued = 1u << 18,
};

// Every status of ibv_wc_status. The names surfaced to JavaScript come from wcStatusName().
enum class WcStatus : int {
  Success = 0,
  LocLenErr = 1,
  LocQpOpErr = 2,
  LocEecOpErr = 3,
  LocProtErr = 4,
  WrFlushErr = 5,
  MwBindErr = 6,
  BadRespErr = 7,
  LocAccessErr = 8,
  RemInvReqErr = 9,
  RemAccessErr = 10,
  RemOpErr = 11,
  RetryExcErr = 12,
  RnrRetryExcErr = 13,
  LocRddViolErr = 14,
  RemInvRdReqErr = 15,
  RemAbortErr = 16,
  InvEecnErr = 17,
  InvEecStateErr = 18,
  FatalErr = 19,
  RespTimeoutErr = 20,
  GeneralErr = 21,
  TmErr = 22,
  TmRndvIncomplete = 23,
};
// "SUCCESS", "REM_ACCESS_ERR", ... (names of ibv_wc_status without the IBV_WC_ prefix); "UNKNOWN_<n>" otherwise.
std::string wcStatusName(int status);
// One sentence: the usual causes of this status and what to do.
std::string wcStatusExplanation(int status);

enum class WcOpcode : int {
  Send = 0,
  RdmaWrite = 1,
  RdmaRead = 2,
  CompareSwap = 3,
  FetchAdd = 4,
  BindMw = 5,
  LocalInv = 6,
  Recv = 128,
  RecvRdmaWithImm = 129,
};

// ---------------------------------------------------------------------------------------------------------------
// Plain values

struct Gid {
  uint8_t raw[16] = {};
  bool operator==(const Gid& other) const;
  std::string toString() const;  // "fe80:0000:0000:0000:..." as ibv_devinfo -v prints it
};

enum class GidType : int { Ib = 0, RoceV1 = 1, RoceV2 = 2, Shm = 100 };

struct GidEntry {
  int index = 0;
  Gid gid;
  GidType type = GidType::Ib;
  std::string netdev;  // empty where there is none
};

struct DeviceInfo {
  std::string name;       // "rxe0", "mlx5_0", "shm"
  std::string provider;   // "ibverbs" | "shm"
  std::string driver;     // kernel driver or user-space provider library ("rxe", "mlx5"), "shm" for shm
  std::string nodeType;   // "CA", "SWITCH", ...
  std::string transport;  // "InfiniBand", "iWARP", ...
  uint64_t nodeGuid = 0;  // host byte order
};

struct DeviceAttributes {
  std::string firmwareVersion;
  uint64_t nodeGuid = 0, sysImageGuid = 0;
  uint64_t maxMrSize = 0, pageSizeCap = 0;
  uint32_t vendorId = 0, vendorPartId = 0, hwVersion = 0;
  int maxQp = 0, maxQpWr = 0, maxSge = 0, maxSgeRd = 0, maxCq = 0, maxCqe = 0, maxMr = 0, maxPd = 0;
  int maxQpRdAtom = 0, maxQpInitRdAtom = 0, maxResRdAtom = 0;
  int atomicCap = 0;  // ibv_atomic_cap: 0 none, 1 HCA, 2 global
  int maxSrq = 0, maxSrqWr = 0, maxSrqSge = 0, maxMw = 0, maxAh = 0, maxMcastGrp = 0, maxPkeys = 0;
  uint32_t deviceCapFlags = 0;  // ibv_device_cap_flags
  int physPortCnt = 0;
  uint64_t completionTimestampMask = 0;  // 0: no time stamps of completions
  uint64_t hcaCoreClockKhz = 0;          // ticks of those per millisecond
};
enum DeviceCapFlags : uint32_t {
  kDeviceMemWindow = 1u << 17,
  kDeviceMemWindowType2a = 1u << 23,
  kDeviceMemWindowType2b = 1u << 24,
};

struct PortAttributes {
  PortState state = PortState::Nop;
  int maxMtuBytes = 0, activeMtuBytes = 0;
  int gidTblLen = 0, pkeyTblLen = 0;
  uint32_t portCapFlags = 0, maxMsgSz = 0;
  uint16_t lid = 0, smLid = 0;
  uint8_t lmc = 0;
  int activeWidth = 0, activeSpeed = 0, physState = 0;
  uint16_t portCapFlags2 = 0;
  uint32_t badPkeyCntr = 0, qkeyViolCntr = 0;
  int maxVlNum = 0, smSl = 0, subnetTimeout = 0, initTypeReply = 0;
  std::string linkLayer;  // "Ethernet" | "InfiniBand" | "Unspecified"; "SharedMemory" for shm
};

// ---------------------------------------------------------------------------------------------------------------
// Work requests and completions

class AddressHandle;
class MemoryRegion;
class MemoryWindow;

// A scatter/gather element; the layout is that of ibv_sge.
struct Sge {
  uint64_t address = 0;
  uint32_t length = 0;
  uint32_t lkey = 0;
};
// A request has one buffer (localAddress, length, lkey: what the hot path uses), or, if sgeCount is 2 or more, those
// that `sges` points to, which must stay valid during the post; `length` is then the sum of theirs. EINVAL otherwise,
// and for atomics with more than one.

// What a memory window shall be bound to, see ibv_bind_mw(3).
struct MwBind {
  std::shared_ptr<MemoryRegion> region;  // null with length 0: bound to nothing (type 1 only)
  uint64_t address = 0;
  uint64_t length = 0;
  uint32_t access = 0;
};

struct SendWorkRequest {
  uint64_t wrId = 0;
  WrOpcode opcode = WrOpcode::RdmaWrite;
  uint32_t sendFlags = 0;
  uint64_t localAddress = 0;
  uint32_t length = 0;  // 0: no SGE
  uint32_t lkey = 0;
  uint64_t remoteAddress = 0;
  uint32_t rkey = 0;
  uint32_t immData = 0;               // host byte order here; the provider converts
  uint32_t invalidateRkey = 0;        // LocalInv: an own window's; SendWithInv: one of the peer's
  uint64_t compareAdd = 0, swap = 0;  // compare (CAS) or addend (FAA) in compareAdd
  uint64_t checksumBefore = 0;        // with kSendChecksum
  // UD only. The handle is of the queue pair's own domain and must stay open until the request has completed; the
  // caller keeps it alive during the post. EINVAL without one, EBADF if it is closed.
  AddressHandle* addressHandle = nullptr;
  uint32_t remoteQpNum = 0;
  uint32_t remoteQkey = 0;  // with the highest bit set: the sending queue pair's own qkey goes out instead
  const Sge* sges = nullptr;
  uint32_t sgeCount = 0;
  // BindMw: a window of type 2 that is bound to nothing, its new key, which differs from the present one in the lowest
  // 8 bits only, and what to bind it to. Both must stay valid during the post.
  MemoryWindow* memoryWindow = nullptr;
  const MwBind* bind = nullptr;
  uint32_t bindRkey = 0;
};

struct ReceiveWorkRequest {
  uint64_t wrId = 0;
  uint64_t localAddress = 0;
  uint32_t length = 0;
  uint32_t lkey = 0;
  const Sge* sges = nullptr;
  uint32_t sgeCount = 0;
};

struct WorkCompletion {
  uint64_t wrId = 0;
  int status = 0;  // WcStatus; kept as int because devices may report others
  int opcode = 0;  // WcOpcode; undefined unless status is Success (as in ibv_poll_cq(3))
  uint32_t vendorErr = 0;
  uint32_t byteLen = 0;
  uint32_t immData = 0;  // host byte order; with kWcWithImm in wcFlags; with kWcWithInv the key that was invalidated
  uint32_t qpNum = 0;
  uint32_t wcFlags = 0;
  // Receives of UD only: who sent it, and the path it came (as far as the link layer has such a thing).
  uint32_t srcQpNum = 0;
  uint16_t slid = 0;
  uint16_t pkeyIndex = 0;
  uint8_t sl = 0;
  uint8_t dlidPathBits = 0;
  uint64_t timestamp = 0;  // of an extended completion queue that was asked for them
  uint64_t checksum = 0;   // with kWcWithChecksum
};
constexpr uint32_t kWcGrh = 1;  // the first kGrhBytes of a UD receive buffer hold the global routing header
constexpr uint32_t kWcWithImm = 2;
constexpr uint32_t kWcWithInv = 8;
constexpr uint32_t kWcWithChecksum = 1u << 16;  // not of verbs
// A receive of UD has the message at this offset, behind room for the routing header, and byteLen counts both.
constexpr uint32_t kGrhBytes = 40;

// ---------------------------------------------------------------------------------------------------------------
// Queue pair attributes

enum QpAttrMask : uint32_t {  // equal to ibv_qp_attr_mask
  kQpState = 1u << 0,
  kQpCurState = 1u << 1,
  kQpAccessFlags = 1u << 3,
  kQpPkeyIndex = 1u << 4,
  kQpPort = 1u << 5,
  kQpQkey = 1u << 6,
  kQpAv = 1u << 7,
  kQpPathMtu = 1u << 8,
  kQpTimeout = 1u << 9,
  kQpRetryCnt = 1u << 10,
  kQpRnrRetry = 1u << 11,
  kQpRqPsn = 1u << 12,
  kQpMaxQpRdAtomic = 1u << 13,
  kQpMinRnrTimer = 1u << 15,
  kQpSqPsn = 1u << 16,
  kQpMaxDestRdAtomic = 1u << 17,
  kQpDestQpn = 1u << 20,
};

struct AddressVector {
  bool isGlobal = false;
  Gid dgid;
  int sgidIndex = 0;
  int hopLimit = 64;
  uint8_t trafficClass = 0;
  uint32_t flowLabel = 0;
  uint16_t dlid = 0;
  uint8_t sl = 0;
  uint8_t portNum = 1;
};

struct QpAttributes {  // which members count is said by `mask`
  uint32_t mask = 0;
  QpState state = QpState::Reset;
  QpState curState = QpState::Reset;
  uint32_t accessFlags = 0;
  int pkeyIndex = 0;
  int portNum = 1;
  AddressVector av;
  int pathMtuBytes = 1024;  // 256, 512, 1024, 2048, 4096
  int timeout = 14;         // local ack timeout exponent: 4.096 us * 2^timeout; 0 = infinite
  int retryCnt = 7;
  int rnrRetry = 7;
  uint32_t rqPsn = 0, sqPsn = 0;
  int maxRdAtomic = 1, maxDestRdAtomic = 1;
  int minRnrTimer = 12;
  uint32_t destQpNum = 0;
  uint32_t qkey = 0;  // UD only
};

struct QpCapabilities {
  uint32_t maxSendWr = 128, maxRecvWr = 16, maxSendSge = 1, maxRecvSge = 1, maxInlineData = 0;
};

class Context;
class ProtectionDomain;
class SharedReceiveQueue;
class Memory;
class MemoryRegion;
class CompletionChannel;
class CompletionQueue;
class QueuePair;

struct QpInit {
  QpType type = QpType::Rc;
  std::shared_ptr<CompletionQueue> sendCq, recvCq;
  QpCapabilities cap;
  bool signalAll = false;
  // Receives come from here instead of a queue of its own; cap.maxRecvWr does not count then. Of the same domain.
  std::shared_ptr<SharedReceiveQueue> srq;
};

// ibv_create_cq_ex(3): what completions hold beside the usual.
enum class Timestamps : int {
  None = 0,
  Raw = 1,        // ticks of the device's clock, see DeviceAttributes::hcaCoreClockKhz
  Wallclock = 2,  // nanoseconds since 1970
};
struct CqOptions {
  bool extended = false;  // made and polled by the extended calls
  Timestamps timestamps = Timestamps::None;
};

struct SrqAttributes {
  uint32_t maxWr = 0;  // as granted
  uint32_t limit = 0;  // fewer receives than this raise SrqLimitReached once; 0: none is armed
};

// ---------------------------------------------------------------------------------------------------------------
// Asynchronous events (values equal those of ibv_event_type)

enum class AsyncEventType : int {
  CqErr = 0,
  QpFatal = 1,
  QpReqErr = 2,
  QpAccessErr = 3,
  CommEst = 4,
  SqDrained = 5,
  PathMig = 6,
  PathMigErr = 7,
  DeviceFatal = 8,
  PortActive = 9,
  PortErr = 10,
  LidChange = 11,
  PkeyChange = 12,
  SmChange = 13,
  SrqErr = 14,
  SrqLimitReached = 15,
  QpLastWqeReached = 16,
  ClientReregister = 17,
  GidChange = 18,
  WqFatal = 19,
};

class VerbsObject;
struct AsyncEvent {
  int type = 0;                         // AsyncEventType; kept as int because devices may report others
  std::shared_ptr<VerbsObject> object;  // the queue pair, completion queue or shared receive queue it is about, or null
  int portNum = 0;                      // of port events; else 0
};

// ---------------------------------------------------------------------------------------------------------------
// The objects

class VerbsObject : public std::enable_shared_from_this<VerbsObject> {
 public:
  virtual ~VerbsObject() = default;
  virtual const char* kind() const = 0;  // "Context", "QueuePair", ... for error messages
  virtual void close() = 0;
  virtual bool closed() const = 0;
};

// Page-aligned memory that the addon owns, mapped and pre-faulted; what MRs are registered over. Several MRs may
// cover the same memory. close() unmaps only when the last holder (MR, JavaScript ArrayBuffer) is gone.
class Memory : public VerbsObject {
 public:
  const char* kind() const override { return "Memory"; }
  virtual uint8_t* data() const = 0;
  virtual size_t length() const = 0;
};

struct MemoryOptions {
  size_t lengthBytes = 0;
  bool shared = false;     // ibverbs: back it by a named file in sharedPath, so that it outlives the process
  std::string sharedPath;  // with shared: the file (created 0600)
  bool hugePages = false;  // ask for huge pages; QUORATE_SYSTEM if none are to be had
};

class MemoryRegion : public VerbsObject {
 public:
  const char* kind() const override { return "MemoryRegion"; }
  virtual uint32_t lkey() const = 0;
  virtual uint32_t rkey() const = 0;
  virtual uint64_t address() const = 0;
  virtual size_t length() const = 0;
  virtual uint32_t access() const = 0;
  // ibv_rereg_mr(3): changes what is set, keeps the rest. The keys may change. When it returns, no byte of a remote
  // operation that the old registration allowed and the new one does not can still land. QUORATE_UNSUPPORTED where the
  // device lacks it: then nothing has changed.
  struct Changes {
    std::shared_ptr<ProtectionDomain> domain;  // null: as it is
    std::shared_ptr<Memory> memory;            // null: the same bytes as before
    size_t offset = 0, length = 0;             // with memory
    std::optional<uint32_t> access;
  };
  virtual void reregister(const Changes& changes) = 0;
  // close() is ibv_dereg_mr(3). When it returns, no byte of any remote WRITE or atomic through this MR can still
  // land (both providers). Throws QUORATE_REVOKE_FAILED when the device refused: then the right is NOT revoked.
};

// ibv_alloc_mw(3): a right on a part of a region that can be given and taken by work requests.
class MemoryWindow : public VerbsObject {
 public:
  const char* kind() const override { return "MemoryWindow"; }
  virtual int type() const = 0;  // 1 or 2
  // As of the last binding that was posted; that a binding failed shows in its completion.
  virtual uint32_t rkey() const = 0;
  // close() is ibv_dealloc_mw(3); it unbinds.
};

class CompletionChannel : public VerbsObject {
 public:
  const char* kind() const override { return "CompletionChannel"; }
  virtual int fd() const = 0;  // readable when an event is pending; non-blocking
  // Takes (and acknowledges) one event; nullptr if none is pending. Never blocks.
  virtual std::shared_ptr<CompletionQueue> getEvent() = 0;
};

class CompletionQueue : public VerbsObject {
 public:
  const char* kind() const override { return "CompletionQueue"; }
  virtual int depth() const = 0;
  // Fills at most `max` completions, returns how many. Throws on a CQ that overflowed or was closed.
  virtual int poll(WorkCompletion* completions, int max) = 0;
  // ibv_resize_cq(3): room for at least that many. QUORATE_LIMIT if more completions are outstanding,
  // QUORATE_UNSUPPORTED where the device lacks it.
  virtual void resize(int depth) = 0;
  virtual Timestamps timestamps() const = 0;
  virtual void requestNotify(bool solicitedOnly) = 0;
  // A word that changes with every receive completion, for futex(2) with FUTEX_WAIT (not private), where the provider
  // has one. A waiter counts itself in `sleepers` before it looks at the word a last time and for as long as it sleeps.
  struct Doorbell {
    std::atomic<uint32_t>* word = nullptr;
    std::atomic<uint32_t>* sleepers = nullptr;
  };
  virtual Doorbell doorbell() { return {}; }
};

// What the host sees of a process at this instant. Equal to ProcessState of lib/verbs/native.ts.
enum class ProcessState { Unknown = 0, Running = 1, Stopped = 2 };

// The process behind a peer's device instance, where the provider can tell that it has died (shm can).
class PeerProcess : public VerbsObject {
 public:
  const char* kind() const override { return "PeerProcess"; }
  virtual bool alive() const = 0;  // false from the start of its exit on, or once it has closed the device
  // Running: not stopped by a signal or a debugger, whether or not it has a processor or waits for something.
  virtual ProcessState state() const { return ProcessState::Unknown; }
  // Holds a robust futex (set_robust_list(2)) that the kernel marks when the process exits; it wakes one waiter if the
  // word has FUTEX_WAITERS. alive() says what a value means.
  virtual std::atomic<uint32_t>* livenessWord() const = 0;
};

// ibv_create_ah(3): a destination of UD sends. Immutable.
class AddressHandle : public VerbsObject {
 public:
  explicit AddressHandle(const ProtectionDomain* domain) : domain_(domain) {}
  const char* kind() const override { return "AddressHandle"; }
  virtual const AddressVector& attributes() const = 0;
  // Tells, without a call, whether a queue pair may use it.
  const ProtectionDomain* domain() const { return domain_; }

  // Held by a post while it looks at the handle, so that close() in another thread waits for it. False if closed.
  bool enter() {
    if ((users_.fetch_add(1, std::memory_order_acquire) & kClosedBit) == 0) return true;
    leave();
    return false;
  }
  void leave() { users_.fetch_sub(1, std::memory_order_release); }

 protected:
  // From here on enter() fails, and nobody is inside. reopen() undoes it.
  void shut();
  void reopen() { users_.fetch_and(~kClosedBit, std::memory_order_release); }
  bool isShut() const { return (users_.load(std::memory_order_acquire) & kClosedBit) != 0; }

 private:
  static constexpr uint32_t kClosedBit = 1u << 31;
  const ProtectionDomain* const domain_;
  std::atomic<uint32_t> users_{0};
};

// ibv_create_srq(3): receives that several queue pairs of one domain draw from.
class SharedReceiveQueue : public VerbsObject {
 public:
  const char* kind() const override { return "SharedReceiveQueue"; }
  virtual uint32_t maxWr() const = 0;
  // Arms the limit (ibv_modify_srq(3) with IBV_SRQ_LIMIT): one event SrqLimitReached when fewer receives are left.
  virtual void setLimit(uint32_t limit) = 0;
  virtual SrqAttributes query() = 0;
  // As QueuePair::postReceive().
  virtual size_t postReceive(const ReceiveWorkRequest* requests, size_t count, int* errnum) = 0;
};

class QueuePair : public VerbsObject {
 public:
  const char* kind() const override { return "QueuePair"; }
  virtual uint32_t number() const = 0;
  virtual QpType type() const = 0;
  virtual const QpCapabilities& capabilities() const = 0;  // as granted
  // ibv_modify_qp(3). A rejected call throws QUORATE_QP_STATE with a message that names the state the QP was in,
  // the transition asked for, and the attributes that are missing, surplus or out of range.
  // For both providers: removing access flags or moving to ERR/RESET is as synchronous as the device makes it;
  // on shm, when modify returns, no byte of an operation that the new state or flags forbid can still land.
  virtual void modify(const QpAttributes& attributes) = 0;
  virtual QpAttributes query() = 0;  // current state and attributes (mask = all that are known)
  // Post requests in order. Returns the number accepted; on a short count `*errnum` says why the next one was
  // refused (EINVAL: wrong state, ENOMEM: queue full, ...). Never throws for those: this is the hot path.
  virtual size_t postSend(const SendWorkRequest* requests, size_t count, int* errnum) = 0;
  virtual size_t postReceive(const ReceiveWorkRequest* requests, size_t count, int* errnum) = 0;
  // ibv_bind_mw(3): posts the binding of a window of type 1, which may be bound to something else, and gives it a new
  // key, *rkey, at once. 0, or the errno that refuses it, as for postSend().
  virtual int bindMemoryWindow(MemoryWindow& window, const MwBind& bind, uint64_t wrId, uint32_t sendFlags,
                               uint32_t* rkey) = 0;
  // ibv_attach_mcast(3), UD only. Attaching twice, or detaching what is not attached, is QUORATE_INVALID_ARGUMENT.
  virtual void attachMulticast(const Gid& group, uint16_t lid) = 0;
  virtual void detachMulticast(const Gid& group, uint16_t lid) = 0;
  // close() is ibv_destroy_qp(3), after detaching from all multicast groups: same promise as MemoryRegion::close() for
  // everything that reaches memory through this QP.
};

class ProtectionDomain : public VerbsObject {
 public:
  const char* kind() const override { return "ProtectionDomain"; }
  virtual std::shared_ptr<MemoryRegion> registerMemory(std::shared_ptr<Memory> memory, size_t offset, size_t length,
                                                       uint32_t access) = 0;
  virtual std::shared_ptr<QueuePair> createQueuePair(const QpInit& init) = 0;
  virtual std::shared_ptr<AddressHandle> createAddressHandle(const AddressVector& av) = 0;
  // At least maxWr receives of at most maxSge elements each.
  virtual std::shared_ptr<SharedReceiveQueue> createSharedReceiveQueue(uint32_t maxWr, uint32_t maxSge = 1) = 0;
  // QUORATE_UNSUPPORTED where the device has no windows of that type (1 or 2).
  virtual std::shared_ptr<MemoryWindow> allocateMemoryWindow(int type) = 0;
};

class Context : public VerbsObject {
 public:
  const char* kind() const override { return "Context"; }
  virtual const DeviceInfo& device() const = 0;
  virtual DeviceAttributes queryDevice() = 0;
  // ibv_query_device_ex(3): what queryDevice() does not say.
  virtual ExtendedDeviceAttributes queryDeviceExtended() { return {}; }
  virtual PortAttributes queryPort(int portNum) = 0;
  virtual std::vector<GidEntry> queryGids(int portNum) = 0;  // the valid entries only
  virtual uint16_t queryPkey(int portNum, int index) = 0;    // ibv_query_pkey(3), host byte order
  // ibv_init_ah_from_wc(3): the way back to the sender of a UD message that was received through `portNum`. `grh`: the
  // first kGrhBytes of the receive buffer.
  virtual AddressVector addressVectorFromCompletion(int portNum, const WorkCompletion& completion,
                                                    const uint8_t* grh) = 0;
  virtual std::shared_ptr<Memory> allocateMemory(const MemoryOptions& options) = 0;
  virtual std::shared_ptr<ProtectionDomain> allocateProtectionDomain() = 0;
  virtual std::shared_ptr<CompletionChannel> createCompletionChannel() = 0;
  virtual std::shared_ptr<CompletionQueue> createCompletionQueue(int depth, std::shared_ptr<CompletionChannel> channel,
                                                                 const CqOptions& options = {}) = 0;
  // ibv_get_async_event(3). The descriptor is readable while an event is pending. getAsyncEvent() takes and
  // acknowledges one; false if none is pending. Never blocks. One reader at a time: which of two gets an event is left
  // to chance.
  virtual int asyncFd() = 0;
  virtual bool getAsyncEvent(AsyncEvent* event) = 0;
  // True if removing QP access flags (RTS to RTS) or MR deregistration is synchronous by the device's own rules
  // (not merely by a clean test run); decides which permission strategies are offered. See docs/PROTOCOL.md.
  virtual bool accessFlagsRevocationIsSynchronous() const = 0;
  // True if READs can be posted with kSendChecksum: who copies them anyway sums them up meanwhile.
  virtual bool checksummedReads() const { return false; }
  // The process that opened the device instance behind `gid`; nullptr where the provider cannot tell whether that
  // lives, or where there is no such instance (any more).
  virtual std::shared_ptr<PeerProcess> openPeerProcess(const Gid& gid) {
    (void)gid;
    return nullptr;
  }
};

class Provider {
 public:
  virtual ~Provider() = default;
  virtual const char* name() const = 0;
  virtual std::vector<DeviceInfo> listDevices() = 0;
  virtual std::shared_ptr<Context> openDevice(const std::string& name) = 0;
};

struct ShmOptions {
  std::string directory;  // empty: $QUORATE_SHM_DIR, else /dev/shm/quorate-<uid>
};
std::unique_ptr<Provider> makeShmProvider(const ShmOptions& options);  // native/provider/shm
std::unique_ptr<Provider> makeIbverbsProvider();  // native/provider/ibverbs; throws QUORATE_NO_LIBRARY

// The RoCE v2 GID to use on a port: the one that maps an IPv4 address, else a global IPv6 one, else link-local;
// on InfiniBand entry 0. Throws QUORATE_NO_GID with the table printed in the message.
GidEntry chooseGid(const std::vector<GidEntry>& gids, const PortAttributes& port);

}  // namespace quorate
