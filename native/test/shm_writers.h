// Writer processes for the revocation tests. They are forked by a helper that never has a second thread (as the thread
// sanitizer demands), take orders through shared memory, and are stopped and killed at will.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>

#include "test/shm_fixture.h"

namespace quorate::test {

constexpr size_t kWriterPatternBytes = 1 << 20;
constexpr int kWriterPatterns = 3;

// One writer and its orders. An order is a connection over which the writer either streams until a request fails, or
// makes a single request and stops itself on the way.
struct WriterOrders {
  enum Kind : int { Stream = 1, Single = 2, Exit = 3 };
  std::atomic<int> wanted{0};   // number of the order
  std::atomic<int> offered{0};  // number of the order whose `mine` is set
  std::atomic<int> go{0};
  std::atomic<int> done{0};
  std::atomic<int> kind{0};
  std::atomic<int> opcode{0};
  std::atomic<uint32_t> length{0};
  std::atomic<int> stopAt{-1};    // HookPoint at which a Single stops itself
  std::atomic<int> stopChunk{0};  // at the how-manieth passing of that point
  std::atomic<int> status{-1};
  std::atomic<uint64_t> requests{0};
  Coordinates mine, target;
};

class WriterFactory {
 public:
  explicit WriterFactory(const ShmTestDirectory& directory);
  ~WriterFactory();
  WriterFactory(const WriterFactory&) = delete;
  WriterFactory& operator=(const WriterFactory&) = delete;

  WriterOrders& orders() { return **orders_; }
  pid_t pid();  // of the living writer; starts one if there is none

  // Gives the next order up to the point where both sides know each other.
  Coordinates offer(WriterOrders::Kind kind, WrOpcode opcode, uint32_t length);
  void start(const Coordinates& target);
  bool finished() { return orders().done.load() == order_; }
  // Waits until the writer has reported how the order ended, or is gone. False if neither happens in time.
  bool waitFinished();

  void stop();         // SIGSTOP, without waiting for its effect
  bool waitStopped();  // until it is stopped
  void resume();       // SIGCONT
  void kill();         // SIGKILL, without waiting for its effect
  bool waitGone();     // until every thread of it has ended

 private:
  void serve(int requests, int answers);

  const ShmTestDirectory& directory_;
  std::unique_ptr<SharedWithChildren<WriterOrders>> orders_;
  pid_t helper_ = 0;
  int toHelper_ = -1, fromHelper_ = -1;
  pid_t writer_ = 0;
  int writerPidfd_ = -1;
  int order_ = 0;
};

}  // namespace quorate::test
