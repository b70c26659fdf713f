// Opening and mapping what belongs to another HCA instance.
#include "provider/shm/peer_hca.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <string>

namespace quorate::shm {
namespace {

constexpr size_t kMaxSegments = 4096;  // remembered per peer; dead entries are dropped first
constexpr size_t kMaxChannels = 256;

}  // namespace

std::shared_ptr<PeerHca> PeerHca::open(std::shared_ptr<ShmDirectory> directory, uint64_t hcaId) {
  const std::string name = ShmDirectory::controlName(hcaId);
  const FileDescriptor fd = openSegment(directory->fd(), name, sizeof(ControlSegment), nullptr);
  if (!fd) return nullptr;
  auto peer = std::make_shared<PeerHca>();
  peer->directory_ = std::move(directory);
  peer->hcaId_ = hcaId;
  peer->mapping_ =
      Mapping::ofFile(fd.get(), sizeof(ControlSegment), Mapping::Pages::OnDemand, "the control segment " + name);
  peer->control_ = reinterpret_cast<ControlSegment*>(peer->mapping_.data());
  const ControlHeader& header = peer->control_->header;
  if (header.magic.load(std::memory_order_acquire) != kControlMagic || header.version.load() != kControlVersion ||
      header.totalBytes.load() != sizeof(ControlSegment) || header.hcaId.load() != hcaId) {
    return nullptr;
  }
  peer->pid_ = static_cast<pid_t>(header.pid.load());
  peer->process_ = ProcessExit(ProcessIdentity{peer->pid_, header.startTime.load(), header.pidNamespace.load()});
  return peer;
}

std::shared_ptr<Mapping> PeerHca::mapSegment(uint32_t memory, uint64_t segmentId) {
  if (memory >= kMaxMemories) return nullptr;
  const std::lock_guard<std::mutex> guard(mutex_);
  const auto known = segments_.find(segmentId);
  if (known != segments_.end()) {
    if (std::shared_ptr<Mapping> mapping = known->second.lock()) return mapping;
  }
  const MemorySlot& slot = control_->memories[memory];
  if (slot.segmentId.load(std::memory_order_acquire) != segmentId) return nullptr;
  const uint32_t pathBytes = slot.pathBytes.load(std::memory_order_relaxed);
  std::string path;
  if (pathBytes == 0) {
    path = ShmDirectory::segmentName(hcaId_, segmentId);
  } else {
    if (pathBytes > kMaxPathBytes) return nullptr;
    for (uint32_t i = 0; i < pathBytes; i++) path += static_cast<char>(slot.path[i].load(std::memory_order_relaxed));
    if (path[0] != '/' || path.find('\0') != std::string::npos) return nullptr;
  }
  // Only the file's own size counts: segments never shrink, so what is mapped stays mapped.
  size_t bytes = 0;
  const FileDescriptor fd = openSegment(directory_->fd(), path, 1, &bytes);
  if (!fd || bytes > kMaxMemoryBytes) return nullptr;
  std::shared_ptr<Mapping> mapping;
  try {
    mapping = std::make_shared<Mapping>(Mapping::ofFile(fd.get(), bytes, Mapping::Pages::Existing, path));
  } catch (const VerbsError&) {
    return nullptr;  // no address space left: the operation fails, its completion says so
  }
  // Segments of a given path replace each other by rename, and meanwhile the slot publishes id 0: if the id is still
  // the same, then the file was the right one.
  if (slot.segmentId.load(std::memory_order_seq_cst) != segmentId) return nullptr;
  if (segments_.size() >= kMaxSegments) {
    std::erase_if(segments_, [](const auto& entry) { return entry.second.expired(); });
  }
  if (segments_.size() < kMaxSegments) segments_[segmentId] = mapping;
  return mapping;
}

void wakeSleepers(CompletionQueueSlot& slot) {
  syscall(SYS_futex, &slot.doorbell, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void PeerHca::ring(uint32_t index, bool solicited) {
  if (index >= kMaxCompletionQueues) return;
  ringDoorbell(control_->completionQueues[index], index, solicited,
               [this](uint32_t channel, uint32_t completionQueue, uint32_t arming) {
                 return wake(channel, completionQueue, arming);
               });
}

void PeerHca::ringAsync() {
  const uint32_t channel = control_->header.asyncChannel.load(std::memory_order_seq_cst);
  if (channel != 0) wake(channel, 0, 0);
}

bool PeerHca::wake(uint32_t channel, uint32_t index, uint32_t arming) {
  if (channel == 0) return true;  // armed without a channel: there is nobody to wake
  const std::lock_guard<std::mutex> guard(channelsMutex_);
  auto entry = channels_.find(channel);
  if (entry == channels_.end()) {
    if (channels_.size() >= kMaxChannels) channels_.clear();
    // Opened for reading too: then writing never raises SIGPIPE, whatever the peer does with its end.
    FileDescriptor fd(openat(directory_->fd(), ShmDirectory::channelName(hcaId_, channel).c_str(),
                             O_RDWR | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC));
    struct stat status;
    if (!fd || fstat(fd.get(), &status) != 0 || !S_ISFIFO(status.st_mode) || status.st_uid != geteuid()) return false;
    entry = channels_.emplace(channel, std::move(fd)).first;
  }
  const ChannelEvent event{index, arming};
  return write(entry->second.get(), &event, sizeof(event)) == static_cast<ssize_t>(sizeof(event));
}

}  // namespace quorate::shm
