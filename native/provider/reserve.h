// Reserving the pages of a shared memory file before anybody writes to them: a write to a page that a full file system
// cannot supply is a fatal SIGBUS, and a reservation that outgrows the machine's memory is answered not by an error but
// by the kernel's OOM killer, which ends processes at its own choice. Both providers keep memory in such files.
#pragma once

#include <cstddef>

namespace quorate {

// Reserves `bytes` of the file, from its beginning. Returns 0 or an errno: ENOSPC if the file system has no room for
// what the file does not hold yet, ENOMEM if the machine has not that much memory left. Neither tries first, so that a
// refused reservation costs nothing. What the two look at can change meanwhile; then fallocate(2) says so itself.
int reserveFile(int fd, size_t bytes);

}  // namespace quorate
