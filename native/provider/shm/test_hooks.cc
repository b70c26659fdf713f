// The hooks, all off.
#include "provider/shm/test_hooks.h"

namespace quorate::shm {

TestHooks testHooks;

}  // namespace quorate::shm
