// See shm_held_copy.h.
#include "test/shm_held_copy.h"

#include <atomic>
#include <thread>

#include "provider/shm/test_hooks.h"

namespace quorate::test {
namespace {

std::atomic<int> g_stage{0};  // 1: hold whoever comes; 2: someone is held; 3: go on

template <shm::HookPoint where>
void hold(shm::HookPoint point) {
  if (point != where) return;
  int expected = 1;
  if (!g_stage.compare_exchange_strong(expected, 2)) return;
  waitUntil([] { return g_stage.load() == 3; });
}

// False if nobody came there.
template <shm::HookPoint where>
bool holdAt(const std::function<void()>& send, const std::function<void()>& meanwhile) {
  g_stage.store(1);
  shm::testHooks.reached.store(hold<where>);
  std::thread sender(send);
  const bool held = waitUntil([] { return g_stage.load() == 2; });
  if (held) meanwhile();
  g_stage.store(3);
  sender.join();
  shm::testHooks.reached.store(nullptr);
  return held;
}

}  // namespace

void revokeInMidCopy(Endpoint& end, const std::function<void()>& send, const std::function<void()>& revoke) {
  std::vector<uint8_t> before;
  REQUIRE(holdAt<shm::HookPoint::MidCopy>(send, [&] {
    revoke();
    before.assign(end.bytes(), end.bytes() + end.options.memoryBytes);
  }));
  CHECK(std::equal(before.begin(), before.end(), end.bytes()));
}

void holdBeforeClaim(const std::function<void()>& send, const std::function<void()>& meanwhile) {
  REQUIRE(holdAt<shm::HookPoint::BeforeClaim>(send, meanwhile));
}

}  // namespace quorate::test
