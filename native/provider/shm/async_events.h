// Asynchronous events of a context. Those of this process wait in a list; that a shared receive queue fell below its
// limit is found by a requester, maybe of another process, which leaves a mark in the queue's slot. A FIFO of the kind
// that completion channels use wakes the reader in both cases; what is in it means nothing by itself.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "provider/shm/directory.h"
#include "provider/shm/layout.h"
#include "verbs/verbs.h"

namespace quorate::shm {

class ShmContext;
class ShmSharedReceiveQueue;

class AsyncEvents {
 public:
  explicit AsyncEvents(ShmContext& context) : context_(context) {}

  int fd();  // makes the FIFO on first use
  bool get(AsyncEvent* event);
  void close();

  // Holds no reference: who calls may hold locks that the end of the object takes.
  void post(AsyncEventType type, std::weak_ptr<VerbsObject> object);
  void watch(const std::shared_ptr<ShmSharedReceiveQueue>& queue);

 private:
  struct Pending {
    AsyncEventType type;
    std::weak_ptr<VerbsObject> object;
  };
  void wake();
  void collectLimits();
  void append(Pending event);

  ShmContext& context_;
  std::mutex mutex_;
  FileDescriptor fifo_;
  uint32_t number_ = 0;
  std::deque<Pending> pending_;
  std::vector<std::weak_ptr<ShmSharedReceiveQueue>> queues_;
  bool closed_ = false;
};

}  // namespace quorate::shm
