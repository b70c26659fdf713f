// ibv_create_qp(3): a queue pair of a real device. Posting never allocates, and throws only once the queue pair is
// closed. What a device's library would do wrongly with a bad request is refused here first: rxe queues requests that
// it refuses in INIT and sends them in RTS, copies the inline data of a READ, and crashes on UD without an address
// handle.
#pragma once

#include <infiniband/verbs.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "provider/ibverbs/completion_queue.h"
#include "provider/ibverbs/lifecycle.h"
#include "provider/ibverbs/memory_window.h"
#include "provider/ibverbs/protection_domain.h"
#include "provider/ibverbs/shared_receive_queue.h"
#include "provider/ibverbs/work_queue.h"
#include "verbs/verbs.h"

namespace quorate::ibverbs {

class IbvQueuePair final : public QueuePair {
 public:
  static std::shared_ptr<IbvQueuePair> create(std::shared_ptr<IbvProtectionDomain> domain, const QpInit& init);
  ~IbvQueuePair() override;

  uint32_t number() const override { return number_; }
  QpType type() const override { return type_; }
  const QpCapabilities& capabilities() const override { return capabilities_; }

  // Going to RTR on RoCE may block for a second while the kernel resolves the peer's address (ARP) when it is cold or
  // unreachable: do it where blocking does no harm, or with static neighbours.
  void modify(const QpAttributes& attributes) override;
  QpAttributes query() override;

  // A request counts against maxSendWr (maxRecvWr) until a completion that retires it was polled, and against the
  // depth of the completion queue until it was handed out: ENOMEM beyond either. A send queue whose requests are all
  // unsignaled therefore fills up; signal one in maxSendWr at least.
  // EINVAL: state, opcode, flags, length or (atomics) alignment that do not fit, or (UD) an address handle that is
  // missing or of another domain. EBADF: a closed address handle. EIO: the device took requests earlier but could not
  // be told to start (the outcome of those is unknown).
  size_t postSend(const SendWorkRequest* requests, size_t count, int* errnum) override;
  // A receive posted after modify() to ERR is flushed. One posted to a queue pair that an error moved to ERR unnoticed
  // is not flushed by rxe: post the receive whose flush is to tell of the end before that.
  size_t postReceive(const ReceiveWorkRequest* requests, size_t count, int* errnum) override;

  // ibv_destroy_qp(3). A device that refuses leaves what peers may do through this queue pair in force:
  // QUORATE_REVOKE_FAILED, and the object stays open. Completions that the device had reported before can still be
  // polled; requests that were still outstanding never complete.
  int bindMemoryWindow(MemoryWindow& window, const MwBind& bind, uint64_t wrId, uint32_t sendFlags,
                       uint32_t* rkey) override;
  void attachMulticast(const Gid& group, uint16_t lid) override;
  void detachMulticast(const Gid& group, uint16_t lid) override;
  void close() override;
  bool closed() const override { return lifecycle_.closed(); }

 private:
  IbvQueuePair(std::shared_ptr<IbvProtectionDomain> domain, std::shared_ptr<IbvCompletionQueue> sendCq,
               std::shared_ptr<IbvCompletionQueue> receiveCq, std::shared_ptr<IbvSharedReceiveQueue> srq, QpType type,
               bool signalAll);
  void detachAllMulticast();
  int checkSend(const SendWorkRequest& request) const;
  // *rkey: the key that a window of type 2 is to have; of one of type 1, it gets the one that the device gave it.
  int postBinding(IbvMemoryWindow& window, const MwBind& bind, uint32_t* rkey, uint64_t wrId, uint32_t sendFlags);
  void closeWindows();
  void forgetWindows();
  void takeInCompletions();
  ibv_qp_attr toDevice(const QpAttributes& attributes) const;
  QpAttributes queryDevice();
  std::string beyondDeviceLimits(const QpAttributes& attributes) const;
  [[noreturn]] void explainRefusal(const QpAttributes& attributes, int errnum);
  [[noreturn]] void refuse(const std::string& explanation, int errnum) const;

  const std::shared_ptr<IbvProtectionDomain> domain_;
  const std::shared_ptr<IbvCompletionQueue> sendCq_, receiveCq_;
  const std::shared_ptr<IbvSharedReceiveQueue> srq_;  // null: receives of its own
  const QpType type_;
  const bool signalAll_;
  ibv_qp* handle_ = nullptr;  // set once, in create(), like the rest of this group
  uint32_t number_ = 0;
  QpCapabilities capabilities_;
  std::shared_ptr<WorkQueue> sendQueue_, receiveQueue_;

  bool sharedAttached_ = false;  // the receive CQ knows of srq_

  Lifecycle lifecycle_{"QueuePair"};
  std::mutex multicastMutex_;
  std::vector<std::pair<Gid, uint16_t>> multicastGroups_;  // guarded by multicastMutex_
  std::vector<std::weak_ptr<IbvMemoryWindow>> windows_;    // of type 2, bound through it; guarded by sendMutex_
  std::mutex modifyMutex_;  // one modification at a time, so that state_ follows the device
  // The state of the last modification. The device may have gone to ERR (or SQE) since, on its own.
  std::atomic<QpState> state_{QpState::Reset};

  AdaptiveMutex sendMutex_;
  bool sendUsable_ = true;        // guarded by sendMutex_; false once closed
  bool sendStartFailed_ = false;  // guarded by sendMutex_
  AdaptiveMutex receiveMutex_;
  bool receiveUsable_ = true;  // guarded by receiveMutex_
};

}  // namespace quorate::ibverbs
