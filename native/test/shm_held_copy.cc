// See shm_held_copy.h.
#include "test/shm_held_copy.h"

#include <atomic>
#include <thread>

#include "provider/shm/test_hooks.h"

namespace quorate::test {
namespace {

std::atomic<int> g_stage{0};  // 1: hold whoever comes; 2: someone is held; 3: go on

void hold(shm::HookPoint point) {
  if (point != shm::HookPoint::MidCopy) return;
  int expected = 1;
  if (!g_stage.compare_exchange_strong(expected, 2)) return;
  waitUntil([] { return g_stage.load() == 3; });
}

}  // namespace

void revokeInMidCopy(Endpoint& end, const std::function<void()>& send, const std::function<void()>& revoke) {
  g_stage.store(1);
  shm::testHooks.reached.store(hold);
  std::thread sender(send);
  const bool held = waitUntil([] { return g_stage.load() == 2; });
  std::vector<uint8_t> before;
  if (held) {
    revoke();
    before.assign(end.bytes(), end.bytes() + end.options.memoryBytes);
  }
  g_stage.store(3);
  sender.join();
  shm::testHooks.reached.store(nullptr);
  REQUIRE(held);
  CHECK(std::equal(before.begin(), before.end(), end.bytes()));
}

}  // namespace quorate::test
