// Real RDMA devices for tests: one end of a connection with everything it needs, and the helpers to connect two ends
// and to wait for completions (bounded, without sleeping).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "verbs/verbs.h"

namespace quorate::test {

// The devices to test with: QUORATE_TEST_DEVICES ("b0,b1"), else b0 and b1 where both exist (rxe devices joined by a
// bridge), else the first device with a usable GID, twice. Empty, after skipTest(), if there is none.
std::vector<std::string> testDevicesOrSkip();

struct DeviceEndpointOptions {
  size_t memoryBytes = 1 << 20;
  uint32_t regionAccess = kAccessLocalWrite | kAccessRemoteWrite | kAccessRemoteRead | kAccessRemoteAtomic;
  uint32_t qpAccess = kAccessRemoteWrite | kAccessRemoteRead | kAccessRemoteAtomic;
  int cqDepth = 256;
  bool separateReceiveCq = false;
  QpCapabilities cap{64, 64, 1, 1, 128};
  int timeout = 1;  // the smallest finite one, so that a dead peer is reported soon
  int retryCnt = 3;
  int rnrRetry = 0;
};

// What the other end must know; plain data, so that it passes through a pipe.
struct Address {
  Gid gid;
  uint32_t qpNumber = 0, psn = 0, rkey = 0;
  uint64_t memory = 0;
};

class DeviceEndpoint {
 public:
  explicit DeviceEndpoint(const std::string& device, const DeviceEndpointOptions& options = {});

  Address address() const;
  void toInit();
  void toRtr(const Address& peer);
  void toRts();
  void connect(const Address& peer);  // all three
  // A new queue pair in place of the old one, which is closed.
  void renewQueuePair();

  uint64_t at(size_t offset) const { return region->address() + offset; }
  // Requests over this end's region, signaled.
  SendWorkRequest request(WrOpcode opcode, size_t offset, uint32_t length, uint64_t remote, uint32_t rkey,
                          uint64_t wrId = 1) const;
  void postOne(const SendWorkRequest& request);
  void postReceive(size_t offset, uint32_t length, uint64_t wrId);

  DeviceEndpointOptions options;
  std::shared_ptr<Context> context;
  std::shared_ptr<ProtectionDomain> domain;
  std::shared_ptr<CompletionChannel> channel;
  std::shared_ptr<CompletionQueue> cq, receiveCq;
  std::shared_ptr<Memory> memory;
  std::shared_ptr<MemoryRegion> region;
  std::shared_ptr<QueuePair> qp;
  GidEntry gid;
  uint32_t psn = 0;
};

// Polls until `count` completions have come; fewer if `limitMs` pass first.
std::vector<WorkCompletion> waitForCompletions(CompletionQueue& cq, size_t count, int limitMs = 10000);
// The status of one completion, by name; "NONE" if none came.
std::string waitForStatus(CompletionQueue& cq, int limitMs = 10000);

struct Pair {
  explicit Pair(const std::vector<std::string>& devices, const DeviceEndpointOptions& a = {},
                const DeviceEndpointOptions& b = {});
  void reconnect();  // with fresh queue pairs at both ends
  DeviceEndpoint a, b;
};

}  // namespace quorate::test
