// See shm_writers.h.
#include "test/shm_writers.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <stdexcept>

#include "provider/shm/test_hooks.h"

namespace quorate::test {
namespace {

WriterOrders* hookOrders = nullptr;
int passings = 0;

void stopHere(shm::HookPoint point) {
  if (static_cast<int>(point) != hookOrders->stopAt.load()) return;
  if (++passings == hookOrders->stopChunk.load()) raise(SIGSTOP);
}

int runWriter(const ShmTestDirectory& directory, WriterOrders& orders) {
  EndpointOptions options;
  options.memoryBytes = kWriterPatternBytes * kWriterPatterns;
  Endpoint endpoint(directory, options);
  uint64_t generation = 1;
  hookOrders = &orders;
  for (int served = orders.done.load();;) {
    if (!waitUntil([&] { return orders.wanted.load() != served; }, 60000)) return 1;
    const int order = orders.wanted.load();
    if (orders.kind == WriterOrders::Exit) return 0;
    endpoint.newQueuePair();
    orders.mine = endpoint.coordinates();
    orders.offered = order;
    if (!waitUntil([&] { return orders.go.load() == order || orders.wanted.load() != order; }, 60000)) return 2;
    if (orders.go.load() != order) continue;
    endpoint.connect(orders.target);
    const WrOpcode opcode = static_cast<WrOpcode>(orders.opcode.load());
    const uint32_t length = orders.length;
    SendWorkRequest request = endpoint.request(opcode, 0, length, orders.target);
    request.swap = ~generation;
    request.compareAdd = 0;
    // Patterns differ from one request to the next, and from those of the order before.
    for (int p = 0; p < kWriterPatterns; p++) {
      std::memset(endpoint.bytes() + static_cast<size_t>(p) * kWriterPatternBytes,
                  static_cast<int>(1 + generation++ % 255), length);
    }
    uint64_t requests = 0;
    if (orders.kind == WriterOrders::Single) {
      passings = 0;
      shm::testHooks.reached = stopHere;
    }
    WorkCompletion completion;
    do {
      request.localAddress = endpoint.region->address() + (requests % kWriterPatterns) * kWriterPatternBytes;
      if (endpoint.post(request) != 0) return 3;
      while (endpoint.cq->poll(&completion, 1) == 0) {
      }
      requests++;
      orders.requests = requests;
    } while (completion.status == 0 && orders.kind == WriterOrders::Stream);
    shm::testHooks.reached = nullptr;
    orders.status = completion.status;
    served = order;
    orders.done = order;
  }
}

}  // namespace

WriterFactory::WriterFactory(const ShmTestDirectory& directory)
    : directory_(directory), orders_(std::make_unique<SharedWithChildren<WriterOrders>>()) {
  int requests[2], answers[2];
  if (pipe2(requests, O_CLOEXEC) != 0 || pipe2(answers, O_CLOEXEC) != 0) throw std::runtime_error("pipe2 failed");
  std::fflush(nullptr);
  helper_ = fork();
  if (helper_ == 0) {
    ::close(requests[1]);
    ::close(answers[0]);
    serve(requests[0], answers[1]);
  }
  ::close(requests[0]);
  ::close(answers[1]);
  toHelper_ = requests[1];
  fromHelper_ = answers[0];
}

// In the helper: forks a writer per byte received, ends with its last writer when the pipe closes.
void WriterFactory::serve(int requests, int answers) {
  pid_t last = 0;
  char byte;
  while (read(requests, &byte, 1) == 1) {
    while (waitpid(-1, nullptr, WNOHANG) > 0) {
    }
    last = fork();
    if (last == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      int status = 9;
      try {
        status = runWriter(directory_, orders());
      } catch (const std::exception& error) {
        std::fprintf(stderr, "writer: %s\n", error.what());
      }
      _exit(status);
    }
    if (write(answers, &last, sizeof(last)) != static_cast<ssize_t>(sizeof(last))) break;
  }
  if (last > 0) ::kill(last, SIGKILL);
  while (waitpid(-1, nullptr, 0) > 0) {
  }
  _exit(0);
}

WriterFactory::~WriterFactory() {
  if (writer_ != 0) kill();
  ::close(toHelper_);
  ::close(fromHelper_);
  if (writerPidfd_ >= 0) ::close(writerPidfd_);
  waitpid(helper_, nullptr, 0);
}

pid_t WriterFactory::pid() {
  if (writer_ == 0) {
    if (write(toHelper_, "w", 1) != 1 ||
        read(fromHelper_, &writer_, sizeof(writer_)) != static_cast<ssize_t>(sizeof(writer_))) {
      throw std::runtime_error("the helper process is gone");
    }
    if (writerPidfd_ >= 0) ::close(writerPidfd_);
    writerPidfd_ = static_cast<int>(syscall(SYS_pidfd_open, writer_, 0));
    if (writerPidfd_ < 0) throw std::runtime_error("pidfd_open failed");
  }
  return writer_;
}

Coordinates WriterFactory::offer(WriterOrders::Kind kind, WrOpcode opcode, uint32_t length) {
  pid();
  orders().kind = kind;
  orders().opcode = static_cast<int>(opcode);
  orders().length = length;
  orders().status = -1;
  orders().requests = 0;
  orders().wanted = ++order_;
  if (!waitUntil([&] { return orders().offered.load() == order_; })) throw std::runtime_error("the writer is stuck");
  return orders().mine;
}

void WriterFactory::start(const Coordinates& target) {
  orders().target = target;
  orders().go = order_;
}

bool WriterFactory::waitFinished() {
  return waitUntil([&] {
    if (finished()) return true;
    pollfd entry{writerPidfd_, POLLIN, 0};
    return poll(&entry, 1, 0) == 1;
  });
}

void WriterFactory::stop() {
  ::kill(writer_, SIGSTOP);
}

bool WriterFactory::waitStopped() {
  const std::string path = "/proc/" + std::to_string(writer_) + "/stat";
  return waitUntil([&] {
    std::FILE* file = std::fopen(path.c_str(), "r");
    if (file == nullptr) return false;
    char text[512] = {};
    const size_t length = std::fread(text, 1, sizeof(text) - 1, file);
    std::fclose(file);
    const char* end = length > 0 ? std::strrchr(text, ')') : nullptr;
    return end != nullptr && end[1] == ' ' && end[2] == 'T';
  });
}

void WriterFactory::resume() {
  ::kill(writer_, SIGCONT);
}

void WriterFactory::kill() {
  ::kill(writer_, SIGKILL);
}

bool WriterFactory::waitGone() {
  pollfd entry{writerPidfd_, POLLIN, 0};
  if (poll(&entry, 1, 20000) != 1) return false;
  writer_ = 0;
  return true;
}

}  // namespace quorate::test
