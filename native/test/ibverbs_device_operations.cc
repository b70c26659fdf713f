// Every operation on real devices: what lands where, and what the completions say.
#include <doctest/doctest.h>
#include <poll.h>
#include <unistd.h>

#include <cstring>
#include <string>

#include "provider/ibverbs/context.h"
#include "provider/ibverbs/device_info.h"
#include "test/child_process.h"
#include "test/ibverbs_endpoint.h"

using namespace quorate;
using test::DeviceEndpoint;
using test::DeviceEndpointOptions;
using test::Pair;
using test::waitForCompletions;
using test::waitForStatus;

namespace {

void fill(uint8_t* bytes, size_t length, uint8_t seed) {
  for (size_t i = 0; i < length; i++) bytes[i] = static_cast<uint8_t>(seed + i * 7);
}

WorkCompletion oneCompletion(CompletionQueue& cq) {
  const auto completions = waitForCompletions(cq, 1);
  REQUIRE(completions.size() == 1);
  CAPTURE(wcStatusName(completions[0].status));
  REQUIRE(completions[0].status == 0);
  return completions[0];
}

uint64_t wordAt(const DeviceEndpoint& end, size_t offset) {
  uint64_t word;
  std::memcpy(&word, end.memory->data() + offset, sizeof(word));
  return word;
}

bool readable(int fd, int limitMs) {
  pollfd one{fd, POLLIN, 0};
  return poll(&one, 1, limitMs) == 1;
}

}  // namespace

TEST_CASE("device: devices are listed with driver, node type and transport, and opened by name") {
  const auto devices = test::testDevicesOrSkip();
  if (devices.empty()) return;
  const auto provider = makeIbverbsProvider();
  bool found = false;
  for (const DeviceInfo& info : provider->listDevices()) {
    CHECK(info.provider == "ibverbs");
    CHECK(info.driver != "unknown");
    CHECK(info.transport == "InfiniBand");
    CHECK(info.nodeType == "CA");
    found |= info.name == devices[0];
    if (info.name.rfind("rxe", 0) == 0) CHECK(info.driver == "rxe");
  }
  CHECK(found);
  const auto context = provider->openDevice(devices[0]);
  CHECK(context->device().name == devices[0]);
  CHECK(context->queryDevice().nodeGuid == context->device().nodeGuid);
  CHECK(context->queryDevice().maxQp > 0);
  CHECK_FALSE(context->accessFlagsRevocationIsSynchronous());
  try {
    provider->openDevice("no-such-device");
    FAIL("a device that does not exist was opened");
  } catch (const VerbsError& error) {
    CHECK(error.code == "QUORATE_NO_DEVICE");
    CHECK(std::string(error.what()).find(devices[0]) != std::string::npos);
  }
}

TEST_CASE("device: the GID table is the same from the library and from sysfs, and holds the chosen one") {
  const auto devices = test::testDevicesOrSkip();
  if (devices.empty()) return;
  const auto context = std::dynamic_pointer_cast<ibverbs::IbvContext>(makeIbverbsProvider()->openDevice(devices[0]));
  const PortAttributes port = context->queryPort(1);
  CHECK(port.state == PortState::Active);
  CHECK(port.linkLayer == "Ethernet");
  CHECK(port.activeMtuBytes >= 256);
  const auto gids = context->queryGids(1);
  const auto fromSysfs = ibverbs::readGidTableFromSysfs("/sys/class/infiniband/" + devices[0], 1, port.gidTblLen);
  REQUIRE(!gids.empty());
  REQUIRE(gids.size() == fromSysfs.size());
  for (size_t i = 0; i < gids.size(); i++) {
    CHECK(gids[i].index == fromSysfs[i].index);
    CHECK(gids[i].gid == fromSysfs[i].gid);
    CHECK(gids[i].type == fromSysfs[i].type);
    CHECK(gids[i].netdev == fromSysfs[i].netdev);
    CHECK(!gids[i].netdev.empty());
  }
  const GidEntry chosen = chooseGid(gids, port);
  CHECK(chosen.type == GidType::RoceV2);
  CHECK(chosen.gid.raw[10] == 0xff);  // the one of an IPv4 address
}

TEST_CASE("device: WRITE puts bytes into the peer's memory, in one packet and in many") {
  const auto devices = test::testDevicesOrSkip();
  if (devices.empty()) return;
  Pair pair(devices);
  for (const uint32_t length : {1u, 8u, 64u, 1024u, 1025u, 65536u}) {
    CAPTURE(length);
    fill(pair.a.memory->data(), length, static_cast<uint8_t>(length));
    std::memset(pair.b.memory->data(), 0, 2 * 65536);
    pair.a.postOne(pair.a.request(WrOpcode::RdmaWrite, 0, length, pair.b.at(8), pair.b.region->rkey(), length));
    const WorkCompletion completion = oneCompletion(*pair.a.cq);
    CHECK(completion.wrId == length);
    CHECK(completion.opcode == static_cast<int>(WcOpcode::RdmaWrite));
    CHECK(completion.qpNum == pair.a.qp->number());
    CHECK(std::memcmp(pair.a.memory->data(), pair.b.memory->data() + 8, length) == 0);
    CHECK(pair.b.memory->data()[7] == 0);
    CHECK(pair.b.memory->data()[8 + length] == 0);
  }
}

TEST_CASE("device: a WRITE of no bytes completes") {
  const auto devices = test::testDevicesOrSkip();
  if (devices.empty()) return;
  Pair pair(devices);
  pair.a.postOne(pair.a.request(WrOpcode::RdmaWrite, 0, 0, pair.b.at(0), pair.b.region->rkey()));
  oneCompletion(*pair.a.cq);
}

TEST_CASE("device: READ gets bytes from the peer's memory") {
  const auto devices = test::testDevicesOrSkip();
  if (devices.empty()) return;
  Pair pair(devices);
  for (const uint32_t length : {8u, 64u, 5000u}) {
    fill(pair.b.memory->data() + 100, length, 3);
    pair.a.postOne(pair.a.request(WrOpcode::RdmaRead, 16, length, pair.b.at(100), pair.b.region->rkey()));
    const WorkCompletion completion = oneCompletion(*pair.a.cq);
    CHECK(completion.opcode == static_cast<int>(WcOpcode::RdmaRead));
    CHECK(std::memcmp(pair.a.memory->data() + 16, pair.b.memory->data() + 100, length) == 0);
  }
}

TEST_CASE("device: compare-and-swap swaps only what it expects, and both atomics return the old value") {
  const auto devices = test::testDevicesOrSkip();
  if (devices.empty()) return;
  Pair pair(devices);
  const uint64_t start = 1000;
  std::memcpy(pair.b.memory->data() + 64, &start, 8);
  SendWorkRequest wr = pair.a.request(WrOpcode::CompareSwap, 0, 8, pair.b.at(64), pair.b.region->rkey());
  wr.compareAdd = 999;
  wr.swap = 5;
  pair.a.postOne(wr);
  CHECK(oneCompletion(*pair.a.cq).opcode == static_cast<int>(WcOpcode::CompareSwap));
  CHECK(wordAt(pair.a, 0) == 1000);
  CHECK(wordAt(pair.b, 64) == 1000);
  wr.compareAdd = 1000;
  wr.swap = 0xfedcba9876543210;
  pair.a.postOne(wr);
  oneCompletion(*pair.a.cq);
  CHECK(wordAt(pair.a, 0) == 1000);
  CHECK(wordAt(pair.b, 64) == 0xfedcba9876543210);
  wr.opcode = WrOpcode::FetchAdd;
  wr.compareAdd = 0x10;
  pair.a.postOne(wr);
  CHECK(oneCompletion(*pair.a.cq).opcode == static_cast<int>(WcOpcode::FetchAdd));
  CHECK(wordAt(pair.a, 0) == 0xfedcba9876543210);
  CHECK(wordAt(pair.b, 64) == 0xfedcba9876543220);
}

TEST_CASE("device: SEND fills the oldest posted receive, with and without immediate data") {
  const auto devices = test::testDevicesOrSkip();
  if (devices.empty()) return;
  DeviceEndpointOptions options;
  options.separateReceiveCq = true;
  Pair pair(devices, options, options);
  pair.b.postReceive(4096, 256, 71);
  pair.b.postReceive(8192, 256, 72);
  fill(pair.a.memory->data(), 100, 9);
  pair.a.postOne(pair.a.request(WrOpcode::Send, 0, 100, 0, 0));
  WorkCompletion received = oneCompletion(*pair.b.receiveCq);
  CHECK(received.wrId == 71);
  CHECK(received.opcode == static_cast<int>(WcOpcode::Recv));
  CHECK(received.byteLen == 100);
  CHECK((received.wcFlags & kWcWithImm) == 0);
  CHECK(received.qpNum == pair.b.qp->number());
  CHECK(std::memcmp(pair.a.memory->data(), pair.b.memory->data() + 4096, 100) == 0);
  CHECK(oneCompletion(*pair.a.cq).opcode == static_cast<int>(WcOpcode::Send));

  SendWorkRequest wr = pair.a.request(WrOpcode::SendWithImm, 0, 32, 0, 0);
  wr.immData = 0x01020304;
  pair.a.postOne(wr);
  received = oneCompletion(*pair.b.receiveCq);
  CHECK(received.wrId == 72);
  CHECK((received.wcFlags & kWcWithImm) != 0);
  CHECK(received.immData == 0x01020304);
  oneCompletion(*pair.a.cq);
}

TEST_CASE("device: WRITE with immediate data writes memory and consumes a receive") {
  const auto devices = test::testDevicesOrSkip();
  if (devices.empty()) return;
  Pair pair(devices);
  pair.b.postReceive(4096, 0, 73);
  fill(pair.a.memory->data(), 48, 77);
  SendWorkRequest wr = pair.a.request(WrOpcode::RdmaWriteWithImm, 0, 48, pair.b.at(512), pair.b.region->rkey());
  wr.immData = 0xdeadbeef;
  pair.a.postOne(wr);
  const WorkCompletion received = oneCompletion(*pair.b.cq);
  CHECK(received.wrId == 73);
  CHECK(received.opcode == static_cast<int>(WcOpcode::RecvRdmaWithImm));
  CHECK(received.immData == 0xdeadbeef);
  CHECK(received.byteLen == 48);
  CHECK(std::memcmp(pair.a.memory->data(), pair.b.memory->data() + 512, 48) == 0);
  oneCompletion(*pair.a.cq);
}

TEST_CASE("device: inline data are taken when the request is posted, from anywhere") {
  const auto devices = test::testDevicesOrSkip();
  if (devices.empty()) return;
  Pair pair(devices);
  REQUIRE(pair.a.qp->capabilities().maxInlineData >= 128);
  uint8_t buffer[128];
  fill(buffer, sizeof(buffer), 5);
  SendWorkRequest wr = pair.a.request(WrOpcode::RdmaWrite, 0, sizeof(buffer), pair.b.at(0), pair.b.region->rkey());
  wr.localAddress = reinterpret_cast<uint64_t>(buffer);
  wr.lkey = 0;
  wr.sendFlags |= kSendInline;
  pair.a.postOne(wr);
  std::memset(buffer, 0, sizeof(buffer));
  oneCompletion(*pair.a.cq);
  fill(buffer, sizeof(buffer), 5);
  CHECK(std::memcmp(buffer, pair.b.memory->data(), sizeof(buffer)) == 0);
  int errnum = 0;
  wr.length = pair.a.qp->capabilities().maxInlineData + 1;
  CHECK(pair.a.qp->postSend(&wr, 1, &errnum) == 0);
  CHECK(errnum == EINVAL);
}

TEST_CASE("device: a list of requests is carried out in order, and unsignaled ones report nothing") {
  const auto devices = test::testDevicesOrSkip();
  if (devices.empty()) return;
  Pair pair(devices);
  constexpr size_t kCount = 40;  // more than one chain
  std::vector<SendWorkRequest> list;
  for (size_t i = 0; i < kCount; i++) {
    pair.a.memory->data()[i * 8] = static_cast<uint8_t>(i + 1);
    list.push_back(pair.a.request(WrOpcode::RdmaWrite, i * 8, 8, pair.b.at(0), pair.b.region->rkey(), i));
    if (i % 10 != 9) list.back().sendFlags = 0;
  }
  int errnum = 0;
  REQUIRE(pair.a.qp->postSend(list.data(), kCount, &errnum) == kCount);
  const auto completions = waitForCompletions(*pair.a.cq, 4);
  REQUIRE(completions.size() == 4);
  for (size_t i = 0; i < 4; i++) {
    CHECK(completions[i].wrId == i * 10 + 9);
    CHECK(completions[i].status == 0);
  }
  CHECK(pair.b.memory->data()[0] == kCount);
}

TEST_CASE("device: full queues refuse, and serve again once completions are polled") {
  const auto devices = test::testDevicesOrSkip();
  if (devices.empty()) return;
  DeviceEndpointOptions options;
  options.cqDepth = 8;
  options.cap.maxSendWr = 32;
  Pair pair(devices, options);
  const int depth = pair.a.cq->depth();
  REQUIRE(depth >= 8);
  std::vector<SendWorkRequest> list(200,
                                    pair.a.request(WrOpcode::RdmaWrite, 0, 8, pair.b.at(0), pair.b.region->rkey()));
  const size_t bound = std::min<size_t>(static_cast<size_t>(depth), pair.a.qp->capabilities().maxSendWr);
  for (int round = 0; round < 20; round++) {
    int errnum = 0;
    REQUIRE(pair.a.qp->postSend(list.data(), list.size(), &errnum) == bound);
    REQUIRE(errnum == ENOMEM);
    REQUIRE(waitForCompletions(*pair.a.cq, bound).size() == bound);  // none was lost
  }
}

TEST_CASE("device: a completion wakes the channel of an armed completion queue, once") {
  const auto devices = test::testDevicesOrSkip();
  if (devices.empty()) return;
  Pair pair(devices);
  CHECK(pair.b.channel->getEvent() == nullptr);
  CHECK_FALSE(readable(pair.b.channel->fd(), 0));
  pair.b.postReceive(0, 64, 1);
  pair.b.postReceive(0, 64, 2);
  pair.b.cq->requestNotify(false);
  pair.a.postOne(pair.a.request(WrOpcode::Send, 0, 8, 0, 0));
  REQUIRE(readable(pair.b.channel->fd(), 10000));
  CHECK(pair.b.channel->getEvent() == pair.b.cq);
  CHECK(pair.b.channel->getEvent() == nullptr);
  CHECK(oneCompletion(*pair.b.cq).wrId == 1);
  oneCompletion(*pair.a.cq);
  pair.a.postOne(pair.a.request(WrOpcode::Send, 0, 8, 0, 0));  // not armed any more
  oneCompletion(*pair.a.cq);
  CHECK(oneCompletion(*pair.b.cq).wrId == 2);
  CHECK(pair.b.channel->getEvent() == nullptr);
}

TEST_CASE("device: a queue armed for solicited completions sleeps through others") {
  const auto devices = test::testDevicesOrSkip();
  if (devices.empty()) return;
  Pair pair(devices);
  pair.b.postReceive(0, 64, 1);
  pair.b.postReceive(0, 64, 2);
  pair.b.cq->requestNotify(true);
  pair.a.postOne(pair.a.request(WrOpcode::Send, 0, 8, 0, 0));
  oneCompletion(*pair.a.cq);
  CHECK(oneCompletion(*pair.b.cq).wrId == 1);
  CHECK(pair.b.channel->getEvent() == nullptr);
  SendWorkRequest wr = pair.a.request(WrOpcode::Send, 0, 8, 0, 0);
  wr.sendFlags |= kSendSolicited;
  pair.a.postOne(wr);
  REQUIRE(readable(pair.b.channel->fd(), 10000));
  CHECK(pair.b.channel->getEvent() == pair.b.cq);
}

TEST_CASE("device: several completion queues share a channel, which names the one that has something") {
  const auto devices = test::testDevicesOrSkip();
  if (devices.empty()) return;
  DeviceEndpointOptions options;
  options.separateReceiveCq = true;
  Pair pair(devices, options, options);
  pair.a.cq->requestNotify(false);
  pair.a.receiveCq->requestNotify(false);
  pair.a.postOne(pair.a.request(WrOpcode::RdmaWrite, 0, 8, pair.b.at(0), pair.b.region->rkey()));
  REQUIRE(readable(pair.a.channel->fd(), 10000));
  CHECK(pair.a.channel->getEvent() == pair.a.cq);
  pair.a.postReceive(0, 64, 5);
  pair.b.postOne(pair.b.request(WrOpcode::Send, 0, 8, 0, 0));
  REQUIRE(readable(pair.a.channel->fd(), 10000));
  CHECK(pair.a.channel->getEvent() == pair.a.receiveCq);
}

TEST_CASE("device: everything closes with events pending and requests outstanding") {
  const auto devices = test::testDevicesOrSkip();
  if (devices.empty()) return;
  Pair pair(devices);
  pair.b.postReceive(0, 64, 1);
  pair.b.postReceive(0, 64, 2);
  pair.b.cq->requestNotify(false);
  pair.a.postOne(pair.a.request(WrOpcode::Send, 0, 8, 0, 0));
  oneCompletion(*pair.a.cq);
  REQUIRE(readable(pair.b.channel->fd(), 10000));
  for (int i = 0; i < 20; i++) {
    pair.a.postOne(pair.a.request(WrOpcode::RdmaWrite, 0, 65536, pair.b.at(0), pair.b.region->rkey()));
  }
  pair.b.context->close();
  pair.a.context->close();
  CHECK(pair.a.qp->closed());
  CHECK(pair.b.region->closed());
}

TEST_CASE("device: several regions over one memory have keys of their own and end one by one") {
  const auto devices = test::testDevicesOrSkip();
  if (devices.empty()) return;
  Pair pair(devices);
  const auto second = pair.b.domain->registerMemory(pair.b.memory, 4096, 4096, kAccessLocalWrite | kAccessRemoteWrite);
  CHECK(second->rkey() != pair.b.region->rkey());
  CHECK(second->address() == pair.b.region->address() + 4096);
  pair.b.memory->close();
  pair.b.memory.reset();
  pair.b.region->close();
  pair.a.memory->data()[0] = 42;
  pair.a.postOne(pair.a.request(WrOpcode::RdmaWrite, 0, 8, second->address(), second->rkey()));
  oneCompletion(*pair.a.cq);
  CHECK(*reinterpret_cast<uint8_t*>(second->address()) == 42);  // the region keeps the pages
}

TEST_CASE("device: a file of shared memory is written by the peer and outlives its memory") {
  const auto devices = test::testDevicesOrSkip();
  if (devices.empty()) return;
  const std::string path = "/dev/shm/quorate-test-rdma-" + std::to_string(getpid());
  MemoryOptions options;
  options.lengthBytes = 8192;
  options.shared = true;
  options.sharedPath = path;
  {
    Pair pair(devices);
    const auto memory = pair.b.context->allocateMemory(options);
    const auto region = pair.b.domain->registerMemory(memory, 0, 8192, kAccessLocalWrite | kAccessRemoteWrite);
    std::memcpy(pair.a.memory->data(), "survives", 8);
    pair.a.postOne(pair.a.request(WrOpcode::RdmaWrite, 0, 8, region->address() + 4000, region->rkey()));
    oneCompletion(*pair.a.cq);
  }
  const auto context = makeIbverbsProvider()->openDevice(devices[0]);
  const auto memory = context->allocateMemory(options);
  CHECK(std::memcmp(memory->data() + 4000, "survives", 8) == 0);
  unlink(path.c_str());
}

TEST_CASE("device: what a forked child drops stays in use by the parent") {
  const auto devices = test::testDevicesOrSkip();
  if (devices.empty()) return;
  Pair pair(devices);
  const pid_t child = test::forkChild([&] {
    pair.b.region->close();
    pair.b.context->close();
    pair.a.context->close();
    return pair.b.region->closed() ? 0 : 1;
  });
  CHECK(test::waitForChild(child) == 0);
  fill(pair.a.memory->data(), 64, 1);
  pair.a.postOne(pair.a.request(WrOpcode::RdmaWrite, 0, 64, pair.b.at(0), pair.b.region->rkey()));
  oneCompletion(*pair.a.cq);
  CHECK(std::memcmp(pair.a.memory->data(), pair.b.memory->data(), 64) == 0);
}

TEST_CASE("device: query returns the attributes that were set") {
  const auto devices = test::testDevicesOrSkip();
  if (devices.empty()) return;
  Pair pair(devices);
  const QpAttributes a = pair.a.qp->query();
  CHECK(a.state == QpState::Rts);
  CHECK((a.mask & kQpState) != 0);
  CHECK(a.destQpNum == pair.b.qp->number());
  CHECK(a.pathMtuBytes == 1024);
  CHECK(a.timeout == pair.a.options.timeout);
  CHECK(a.retryCnt == pair.a.options.retryCnt);
  CHECK(a.accessFlags == pair.a.options.qpAccess);
  CHECK(a.av.isGlobal);
  CHECK(a.av.dgid == pair.b.gid.gid);
  CHECK(a.av.sgidIndex == pair.a.gid.index);
}

TEST_CASE("device: UC and UD queue pairs reach RTS where the device has them") {
  const auto devices = test::testDevicesOrSkip();
  if (devices.empty()) return;
  DeviceEndpoint end(devices[0]);
  for (const QpType type : {QpType::Uc, QpType::Ud}) {
    QpInit init;
    init.type = type;
    init.sendCq = init.recvCq = end.cq;
    const auto qp = end.domain->createQueuePair(init);
    QpAttributes a;
    a.mask = kQpState | kQpPkeyIndex | kQpPort | (type == QpType::Ud ? kQpQkey : kQpAccessFlags);
    a.qkey = 0x11111111;
    a.state = QpState::Init;
    qp->modify(a);
    a.state = QpState::Rtr;
    a.mask = kQpState;
    if (type == QpType::Uc) {
      a.mask |= kQpAv | kQpPathMtu | kQpDestQpn | kQpRqPsn;
      a.av.isGlobal = true;
      a.av.dgid = end.gid.gid;
      a.av.sgidIndex = end.gid.index;
      a.destQpNum = qp->number();
    }
    qp->modify(a);
    a.state = QpState::Rts;
    a.mask = kQpState | kQpSqPsn;
    qp->modify(a);
    CHECK(qp->query().state == QpState::Rts);
    CHECK(qp->type() == type);
  }
}
