// See shm_fixture.h.
#include "test/shm_fixture.h"

#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <stdexcept>

namespace quorate::test {

ShmTestDirectory::ShmTestDirectory() : owner_(getpid()) {
  char name[] = "/dev/shm/quorate-test-XXXXXX";
  if (mkdtemp(name) == nullptr) throw std::runtime_error("mkdtemp failed");
  path_ = name;
}

ShmTestDirectory::~ShmTestDirectory() {
  std::error_code ignored;
  if (owner_ == getpid()) std::filesystem::remove_all(path_, ignored);
}

std::vector<std::string> ShmTestDirectory::names(const std::string& part) const {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(path_)) {
    const std::string name = entry.path().filename();
    if (name.find(part) != std::string::npos) names.push_back(name);
  }
  return names;
}

bool waitUntil(const std::function<bool()>& condition, int limitMs) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(limitMs);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    sched_yield();
  }
  return true;
}

Endpoint::Endpoint(const ShmTestDirectory& directory, const EndpointOptions& options)
    : Endpoint(makeShmProvider(ShmOptions{directory.path()})->openDevice("shm"), options) {}

Endpoint::Endpoint(std::shared_ptr<Context> opened, const EndpointOptions& given)
    : options(given), context(std::move(opened)) {
  domain = context->allocateProtectionDomain();
  MemoryOptions memoryOptions;
  memoryOptions.lengthBytes = options.memoryBytes;
  memoryOptions.shared = !options.sharedPath.empty();
  memoryOptions.sharedPath = options.sharedPath;
  memory = context->allocateMemory(memoryOptions);
  region = domain->registerMemory(memory, 0, options.memoryBytes, options.regionAccess);
  if (options.withChannel) channel = context->createCompletionChannel();
  cq = context->createCompletionQueue(options.cqDepth, channel);
  newQueuePair();
}

void Endpoint::newQueuePair() {
  QpInit init;
  init.sendCq = init.recvCq = cq;
  init.cap = options.cap;
  qp = domain->createQueuePair(init);
}

Coordinates Endpoint::coordinates() const {
  Coordinates result;
  result.gid = context->queryGids(1)[0].gid;
  result.qpNum = qp->number();
  result.psn = options.psn;
  result.address = region->closed() ? 0 : region->address();
  result.rkey = region->closed() ? 0 : region->rkey();
  return result;
}

void Endpoint::connect(const Coordinates& peer) {
  qp->modify(initAttributes(options.qpAccess));
  qp->modify(rtrAttributes(peer, options.minRnrTimer));
  qp->modify(rtsAttributes(options.psn, options.rnrRetry));
}

int Endpoint::post(const SendWorkRequest& request) {
  int errnum = 0;
  qp->postSend(&request, 1, &errnum);
  return errnum;
}

int Endpoint::postReceive(uint64_t wrId, uint64_t offset, uint32_t length) {
  ReceiveWorkRequest request;
  request.wrId = wrId;
  request.localAddress = region->address() + offset;
  request.length = length;
  request.lkey = region->lkey();
  int errnum = 0;
  qp->postReceive(&request, 1, &errnum);
  return errnum;
}

WorkCompletion Endpoint::wait() {
  WorkCompletion completion;
  if (!waitUntil([&] { return cq->poll(&completion, 1) == 1; })) throw std::runtime_error("no completion came");
  return completion;
}

WcStatus Endpoint::run(const SendWorkRequest& request) {
  const int errnum = post(request);
  if (errnum != 0) throw std::runtime_error("post refused: " + std::string(std::strerror(errnum)));
  return static_cast<WcStatus>(wait().status);
}

SendWorkRequest Endpoint::request(WrOpcode opcode, uint64_t localOffset, uint32_t length, const Coordinates& peer,
                                  uint64_t remoteOffset) const {
  SendWorkRequest request;
  request.wrId = 7;
  request.opcode = opcode;
  request.sendFlags = kSendSignaled;
  request.localAddress = region->address() + localOffset;
  request.length = length;
  request.lkey = region->lkey();
  request.remoteAddress = peer.address + remoteOffset;
  request.rkey = peer.rkey;
  return request;
}

void connectPair(Endpoint& a, Endpoint& b) {
  const Coordinates ofA = a.coordinates(), ofB = b.coordinates();
  a.connect(ofB);
  b.connect(ofA);
}

QpAttributes initAttributes(uint32_t access) {
  QpAttributes attributes;
  attributes.mask = kQpState | kQpPkeyIndex | kQpPort | kQpAccessFlags;
  attributes.state = QpState::Init;
  attributes.accessFlags = access;
  return attributes;
}

QpAttributes rtrAttributes(const Coordinates& peer, int minRnrTimer) {
  QpAttributes attributes;
  attributes.mask = kQpState | kQpAv | kQpPathMtu | kQpDestQpn | kQpRqPsn | kQpMaxDestRdAtomic | kQpMinRnrTimer;
  attributes.state = QpState::Rtr;
  attributes.av.isGlobal = true;
  attributes.av.dgid = peer.gid;
  attributes.pathMtuBytes = 4096;
  attributes.destQpNum = peer.qpNum;
  attributes.rqPsn = peer.psn;
  attributes.maxDestRdAtomic = 16;
  attributes.minRnrTimer = minRnrTimer;
  return attributes;
}

QpAttributes rtsAttributes(uint32_t psn, int rnrRetry) {
  QpAttributes attributes;
  attributes.mask = kQpState | kQpTimeout | kQpRetryCnt | kQpRnrRetry | kQpSqPsn | kQpMaxQpRdAtomic;
  attributes.state = QpState::Rts;
  attributes.timeout = 14;
  attributes.retryCnt = 7;
  attributes.rnrRetry = rnrRetry;
  attributes.sqPsn = psn;
  attributes.maxRdAtomic = 16;
  return attributes;
}

QpAttributes stateAttributes(QpState state) {
  QpAttributes attributes;
  attributes.mask = kQpState;
  attributes.state = state;
  return attributes;
}

QpAttributes accessAttributes(uint32_t access) {
  QpAttributes attributes;
  attributes.mask = kQpAccessFlags;
  attributes.accessFlags = access;
  return attributes;
}

void* mapSharedAnonymous(size_t bytes) {
  void* address = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (address == MAP_FAILED) throw std::runtime_error("mmap failed");
  return address;
}

void unmapShared(void* address, size_t bytes) {
  munmap(address, bytes);
}

}  // namespace quorate::test
