// Holds what this process has, memory and descriptors, for a moment after its end.
//
// The last thing that a process which is killed does is to give its memory back, page by page, on the processor on
// which it died: some ten milliseconds for a small Node.js process, hundreds for one with gigabytes. A replica that
// takes over on the same host needs that processor. So a second process, the keeper, shares address space and
// descriptor table (clone(2) with CLONE_VM and CLONE_FILES, without CLONE_THREAD): it sleeps, hears of its parent's end
// (PR_SET_PDEATHSIG), sleeps so long again, and ends, and only then is everything given back. It runs nothing but
// system calls, on a stack of its own, and touches nothing of the C library, whose thread-local data is its parent's.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <memory>

#include "verbs/verbs.h"

namespace quorate {

// One user's wish to hold; the process has one keeper for all of them, which holds for the longest.
class ExitHold : public VerbsObject {
 public:
  // Throws VerbsError QUORATE_SYSTEM if there can be no keeper (EAGAIN, ENOMEM, ENOSYS; see clone(2)).
  static std::shared_ptr<ExitHold> open(uint64_t holdNs);
  ~ExitHold() override { ExitHold::close(); }
  ExitHold(const ExitHold&) = delete;
  ExitHold& operator=(const ExitHold&) = delete;

  const char* kind() const override { return "ExitHold"; }
  void close() override;  // with the last one the keeper ends
  bool closed() const override { return closed_.load(std::memory_order_acquire); }

  pid_t keeper() const { return keeper_; }

 private:
  ExitHold(uint64_t holdNs, pid_t keeper) : holdNs_(holdNs), keeper_(keeper) {}

  const uint64_t holdNs_;
  const pid_t keeper_;
  std::atomic<bool> closed_{false};
};

}  // namespace quorate
