// What the tests of the shm provider share: a directory of their own, an endpoint with all its objects, connecting two
// of them (also across processes), and bounded waiting for a condition.
#pragma once

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "provider/shm/context.h"
#include "provider/shm/queue_pair.h"
#include "test/error_code.h"
#include "verbs/verbs.h"

namespace quorate::test {

constexpr uint32_t kAllAccess = kAccessLocalWrite | kAccessRemoteWrite | kAccessRemoteRead | kAccessRemoteAtomic;

// A fresh directory in /dev/shm for one test, removed with all that is in it.
class ShmTestDirectory {
 public:
  ShmTestDirectory();
  ~ShmTestDirectory();
  const std::string& path() const { return path_; }
  // Names in the directory that contain `part`.
  std::vector<std::string> names(const std::string& part = {}) const;

 private:
  std::string path_;
  int owner_;
};

// True once `condition` is; false if it is still false after `limitMs`.
bool waitUntil(const std::function<bool()>& condition, int limitMs = 20000);

// What one side of a connection has to know of the other. Plain, so that it can go through shared memory.
struct Coordinates {
  Gid gid;
  uint32_t qpNum = 0;
  uint32_t psn = 0;
  uint64_t address = 0;
  uint32_t rkey = 0;
};

struct EndpointOptions {
  size_t memoryBytes = 65536;
  uint32_t regionAccess = kAllAccess;
  uint32_t qpAccess = kAccessRemoteWrite | kAccessRemoteRead | kAccessRemoteAtomic;
  int cqDepth = 256;
  bool withChannel = false;
  QpCapabilities cap;
  uint32_t psn = 1000;
  int rnrRetry = 7;
  int minRnrTimer = 1;
  std::string sharedPath;
};

// A context with a protection domain, a memory, a region over all of it, a CQ and a queue pair.
class Endpoint {
 public:
  explicit Endpoint(const ShmTestDirectory& directory, const EndpointOptions& options = {});
  Endpoint(std::shared_ptr<Context> context, const EndpointOptions& options);

  Coordinates coordinates() const;
  void connect(const Coordinates& peer);
  void newQueuePair();

  // One request with defaults filled in; returns postSend()'s errnum (0: accepted).
  int post(const SendWorkRequest& request);
  int postReceive(uint64_t wrId, uint64_t offset, uint32_t length);
  // Polls until a completion comes; fails the test if none does.
  WorkCompletion wait();
  // How a request ended, without caring about the rest.
  WcStatus run(const SendWorkRequest& request);

  SendWorkRequest request(WrOpcode opcode, uint64_t localOffset, uint32_t length, const Coordinates& peer,
                          uint64_t remoteOffset = 0) const;
  uint8_t* bytes() const { return memory->data(); }
  shm::ShmContext& internals() const { return *std::static_pointer_cast<shm::ShmContext>(context); }

  EndpointOptions options;
  std::shared_ptr<Context> context;
  std::shared_ptr<ProtectionDomain> domain;
  std::shared_ptr<Memory> memory;
  std::shared_ptr<MemoryRegion> region;
  std::shared_ptr<CompletionChannel> channel;
  std::shared_ptr<CompletionQueue> cq;
  std::shared_ptr<QueuePair> qp;
};

void connectPair(Endpoint& a, Endpoint& b);

// An attribute set for each step of a connection.
QpAttributes initAttributes(uint32_t access);
QpAttributes rtrAttributes(const Coordinates& peer, int minRnrTimer = 1);
QpAttributes rtsAttributes(uint32_t psn, int rnrRetry = 7);
QpAttributes stateAttributes(QpState state);
QpAttributes accessAttributes(uint32_t access);

// Memory that a test shares with its forked children, zeroed.
template <typename T>
class SharedWithChildren {
 public:
  SharedWithChildren();
  ~SharedWithChildren();
  T* operator->() const { return value_; }
  T& operator*() const { return *value_; }

 private:
  T* value_;
};

// What two processes of a test tell each other, by such memory.
struct Exchange {
  Coordinates parent, child;
  std::atomic<int> stage{0};
  std::atomic<uint64_t> counter{0};
};

void* mapSharedAnonymous(size_t bytes);
void unmapShared(void* address, size_t bytes);

template <typename T>
SharedWithChildren<T>::SharedWithChildren() : value_(new (mapSharedAnonymous(sizeof(T))) T()) {}
template <typename T>
SharedWithChildren<T>::~SharedWithChildren() {
  unmapShared(value_, sizeof(T));
}

}  // namespace quorate::test
