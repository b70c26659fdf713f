// One turn of a spin loop: tells the processor that this thread is waiting, which frees the core's other thread.
#pragma once

namespace quorate::addon {

inline void cpuPause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");
#else
  asm volatile("" ::: "memory");
#endif
}

}  // namespace quorate::addon
