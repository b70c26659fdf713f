// Finding, fencing and removing the files of dead HCA instances.
#include "provider/shm/leftovers.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <unistd.h>

#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "provider/shm/layout.h"
#include "provider/shm/process_identity.h"
#include "provider/shm/revoker.h"

namespace quorate::shm {
namespace {

constexpr size_t kMaxNames = 200'000;  // looked at per call
constexpr size_t kIdDigits = 16;

struct Name {
  uint64_t hcaId;
  std::string full, suffix;
};

std::optional<Name> parse(const std::string& full) {
  if (full.size() <= kIdDigits || full[kIdDigits] != '.') return std::nullopt;
  if (full.find_first_not_of("0123456789abcdef") != kIdDigits) return std::nullopt;
  return Name{std::strtoull(full.substr(0, kIdDigits).c_str(), nullptr, 16), full, full.substr(kIdDigits + 1)};
}

std::vector<Name> namesIn(const ShmDirectory& directory) {
  std::vector<Name> names;
  const int fd = openat(directory.fd(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR* stream = fd < 0 ? nullptr : fdopendir(fd);
  if (stream == nullptr) {
    const int errnum = errno;
    if (fd >= 0) ::close(fd);
    throw systemError("opendir", errnum, directory.path());
  }
  while (const dirent* entry = readdir(stream)) {
    if (std::optional<Name> name = parse(entry->d_name)) names.push_back(std::move(*name));
    if (names.size() >= kMaxNames) break;
  }
  closedir(stream);
  return names;
}

bool isDead(const ControlHeader& header) {
  if ((header.liveness.load(std::memory_order_seq_cst) & FUTEX_OWNER_DIED) != 0) return true;
  return !mayBeRunning(
      ProcessIdentity{static_cast<pid_t>(header.pid.load()), header.startTime.load(), header.pidNamespace.load()});
}

// True if the instance is dead; its queue pairs are closed then.
bool fenceIfDead(const ShmDirectory& directory, const std::string& name) {
  const FileDescriptor fd = openSegment(directory.fd(), name, sizeof(ControlSegment), nullptr);
  if (!fd) return false;
  const Mapping mapping = Mapping::ofFile(fd.get(), sizeof(ControlSegment), Mapping::Pages::OnDemand, name);
  auto* control = reinterpret_cast<ControlSegment*>(mapping.data());
  // Another version's files are for that version to judge.
  if (control->header.magic.load() != kControlMagic || control->header.version.load() != kControlVersion) return false;
  if (!isDead(control->header)) return false;
  for (QueuePairSlot& slot : control->queuePairs) {
    closeWord(slot);
    passOver(slot, slot.word.load(std::memory_order_seq_cst), true);
  }
  return true;
}

// See unreadyName(): made, not yet ready. Earlier versions left the namespace out: it counts as ours then.
bool isAbandoned(const std::string& suffix, uint64_t pidNamespaceHere) {
  ProcessIdentity opener{0, 0, pidNamespaceHere};
  return std::sscanf(suffix.c_str(), "new-%d-%" SCNu64 "-%" SCNu64, &opener.pid, &opener.startTime,
                     &opener.pidNamespace) >= 2 &&
         !mayBeRunning(opener);
}

}  // namespace

std::string unreadyName(uint64_t hcaId, const ProcessIdentity& opener) {
  const std::string name = ShmDirectory::controlName(hcaId);
  return name.substr(0, name.find('.')) + ".new-" + std::to_string(opener.pid) + "-" +
         std::to_string(opener.startTime) + "-" + std::to_string(opener.pidNamespace);
}

std::vector<uint64_t> instancesIn(const ShmDirectory& directory) {
  std::vector<uint64_t> instances;
  for (const Name& name : namesIn(directory)) {
    if (name.suffix == "ctl") instances.push_back(name.hcaId);
  }
  return instances;
}

int removeLeftovers(const ShmDirectory& directory) {
  const std::vector<Name> names = namesIn(directory);
  const uint64_t pidNamespace = thisProcess().pidNamespace;
  std::unordered_map<uint64_t, bool> dead;  // by HCA
  for (const Name& name : names) {
    if (name.suffix == "ctl") {
      dead[name.hcaId] = fenceIfDead(directory, name.full);
    } else if (isAbandoned(name.suffix, pidNamespace)) {
      unlinkat(directory.fd(), name.full.c_str(), 0);
    }
  }
  for (const Name& name : names) {
    if (name.suffix.rfind("seg-", 0) != 0 && name.suffix.rfind("ch-", 0) != 0) continue;
    const auto known = dead.find(name.hcaId);
    // An instance's control segment is made first and removed last: without one, its other files belong to nobody.
    const bool orphan = known == dead.end() &&
                        faccessat(directory.fd(), ShmDirectory::controlName(name.hcaId).c_str(), F_OK, 0) != 0 &&
                        errno == ENOENT;
    if (orphan || (known != dead.end() && known->second)) unlinkat(directory.fd(), name.full.c_str(), 0);
  }
  int removed = 0;
  for (const auto& [hcaId, isDead] : dead) {
    if (isDead && unlinkat(directory.fd(), ShmDirectory::controlName(hcaId).c_str(), 0) == 0) removed++;
  }
  return removed;
}

}  // namespace quorate::shm
