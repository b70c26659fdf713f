// See ibverbs_endpoint.h.
#include "test/ibverbs_endpoint.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <sstream>

#include "test/skip.h"

namespace quorate::test {

std::vector<std::string> testDevicesOrSkip() {
  std::unique_ptr<Provider> provider;
  try {
    provider = makeIbverbsProvider();
  } catch (const VerbsError& error) {
    skipTest(error.what());
    return {};
  }
  if (const char* chosen = std::getenv("QUORATE_TEST_DEVICES")) {
    std::vector<std::string> names;
    std::stringstream list(chosen);
    for (std::string name; std::getline(list, name, ',');) names.push_back(name);
    if (names.size() == 1) names.push_back(names[0]);
    REQUIRE(names.size() == 2);
    return names;
  }
  std::vector<std::string> names;
  for (const DeviceInfo& info : provider->listDevices()) names.push_back(info.name);
  const auto has = [&](const char* name) { return std::find(names.begin(), names.end(), name) != names.end(); };
  if (has("b0") && has("b1")) return {"b0", "b1"};
  for (const std::string& name : names) {
    const auto context = provider->openDevice(name);
    const PortAttributes port = context->queryPort(1);
    try {
      chooseGid(context->queryGids(1), port);
    } catch (const VerbsError&) {
      continue;
    }
    if (port.state == PortState::Active) return {name, name};
  }
  skipTest("no RDMA device with an active port and a usable GID");
  return {};
}

DeviceEndpoint::DeviceEndpoint(const std::string& device, const DeviceEndpointOptions& endpointOptions)
    : options(endpointOptions) {
  // A different start for every connection, as in production, and the same in every run.
  static std::atomic<uint32_t> nextPsn{0x123456};
  context = makeIbverbsProvider()->openDevice(device);
  gid = chooseGid(context->queryGids(1), context->queryPort(1));
  domain = context->allocateProtectionDomain();
  channel = context->createCompletionChannel();
  cq = context->createCompletionQueue(options.cqDepth, channel);
  receiveCq = options.separateReceiveCq ? context->createCompletionQueue(options.cqDepth, channel) : cq;
  MemoryOptions memoryOptions;
  memoryOptions.lengthBytes = options.memoryBytes;
  memory = context->allocateMemory(memoryOptions);
  region = domain->registerMemory(memory, 0, options.memoryBytes, options.regionAccess);
  psn = nextPsn.fetch_add(0x1357) & 0xffffff;
  renewQueuePair();
}

void DeviceEndpoint::renewQueuePair() {
  if (qp != nullptr) qp->close();
  QpInit init;
  init.sendCq = cq;
  init.recvCq = receiveCq;
  init.cap = options.cap;
  qp = domain->createQueuePair(init);
}

Address DeviceEndpoint::address() const {
  return {gid.gid, qp->number(), psn, region->rkey(), region->address()};
}

void DeviceEndpoint::toInit() {
  QpAttributes a;
  a.mask = kQpState | kQpPkeyIndex | kQpPort | kQpAccessFlags;
  a.state = QpState::Init;
  a.accessFlags = options.qpAccess;
  qp->modify(a);
}

void DeviceEndpoint::toRtr(const Address& peer) {
  QpAttributes a;
  a.mask = kQpState | kQpAv | kQpPathMtu | kQpDestQpn | kQpRqPsn | kQpMaxDestRdAtomic | kQpMinRnrTimer;
  a.state = QpState::Rtr;
  a.av.isGlobal = true;
  a.av.dgid = peer.gid;
  a.av.sgidIndex = gid.index;
  a.pathMtuBytes = 1024;
  a.destQpNum = peer.qpNumber;
  a.rqPsn = peer.psn;
  a.maxDestRdAtomic = 4;
  a.minRnrTimer = 1;
  qp->modify(a);
}

void DeviceEndpoint::toRts() {
  QpAttributes a;
  a.mask = kQpState | kQpSqPsn | kQpMaxQpRdAtomic | kQpRetryCnt | kQpRnrRetry | kQpTimeout;
  a.state = QpState::Rts;
  a.sqPsn = psn;
  a.maxRdAtomic = 4;
  a.retryCnt = options.retryCnt;
  a.rnrRetry = options.rnrRetry;
  a.timeout = options.timeout;
  qp->modify(a);
}

void DeviceEndpoint::connect(const Address& peer) {
  toInit();
  toRtr(peer);
  toRts();
}

SendWorkRequest DeviceEndpoint::request(WrOpcode opcode, size_t offset, uint32_t length, uint64_t remote, uint32_t rkey,
                                        uint64_t wrId) const {
  SendWorkRequest wr;
  wr.wrId = wrId;
  wr.opcode = opcode;
  wr.sendFlags = kSendSignaled;
  wr.localAddress = at(offset);
  wr.length = length;
  wr.lkey = region->lkey();
  wr.remoteAddress = remote;
  wr.rkey = rkey;
  return wr;
}

void DeviceEndpoint::postOne(const SendWorkRequest& wr) {
  int errnum = 0;
  const size_t accepted = qp->postSend(&wr, 1, &errnum);
  CAPTURE(errnum);
  REQUIRE(accepted == 1);
}

void DeviceEndpoint::postReceive(size_t offset, uint32_t length, uint64_t wrId) {
  const ReceiveWorkRequest wr{wrId, at(offset), length, region->lkey()};
  int errnum = 0;
  const size_t accepted = qp->postReceive(&wr, 1, &errnum);
  CAPTURE(errnum);
  REQUIRE(accepted == 1);
}

std::vector<WorkCompletion> waitForCompletions(CompletionQueue& cq, size_t count, int limitMs) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(limitMs);
  std::vector<WorkCompletion> all;
  while (all.size() < count && std::chrono::steady_clock::now() < deadline) {
    WorkCompletion chunk[8];
    const int wanted = static_cast<int>(std::min<size_t>(8, count - all.size()));
    const int got = cq.poll(chunk, wanted);
    all.insert(all.end(), chunk, chunk + got);
  }
  return all;
}

std::string waitForStatus(CompletionQueue& cq, int limitMs) {
  const auto completions = waitForCompletions(cq, 1, limitMs);
  return completions.empty() ? "NONE" : wcStatusName(completions[0].status);
}

Pair::Pair(const std::vector<std::string>& devices, const DeviceEndpointOptions& optionsA,
           const DeviceEndpointOptions& optionsB)
    : a(devices.at(0), optionsA), b(devices.at(1), optionsB) {
  a.connect(b.address());
  b.connect(a.address());
}

void Pair::reconnect() {
  a.renewQueuePair();
  b.renewQueuePair();
  a.connect(b.address());
  b.connect(a.address());
}

}  // namespace quorate::test
