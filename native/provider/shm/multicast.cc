// See multicast.h. Attaching, detaching, and sending to a group.
#include "provider/shm/multicast.h"

#include <cstring>
#include <string>
#include <vector>

#include "provider/shm/address_handle.h"
#include "provider/shm/leftovers.h"
#include "provider/shm/queue_pair.h"

namespace quorate::shm {
namespace {

void halves(const Gid& gid, uint64_t* high, uint64_t* low) {
  std::memcpy(high, gid.raw, sizeof(*high));
  std::memcpy(low, gid.raw + 8, sizeof(*low));
}

}  // namespace

bool isMulticast(const Gid& gid) {
  static constexpr uint8_t kMapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
  return gid.raw[0] == 0xff || (std::memcmp(gid.raw, kMapped, sizeof(kMapped)) == 0 && gid.raw[12] >> 4 == 0xe);
}

bool isMember(const MulticastEntry& entry, const Gid& group) {
  uint64_t high = 0, low = 0;
  halves(group, &high, &low);
  return entry.queuePair.load(std::memory_order_acquire) != 0 &&
         entry.groupHigh.load(std::memory_order_relaxed) == high &&
         entry.groupLow.load(std::memory_order_relaxed) == low;
}

void ShmQueuePair::attachMulticast(const Gid& group, uint16_t lid) {
  context_.requireOpen(kind());
  const std::lock_guard<std::mutex> modifying(modifyMutex_);
  if (closed()) throw VerbsError("QUORATE_CLOSED", "This QueuePair was closed");
  const std::string what =
      "Attaching queue pair " + std::to_string(place_.number) + " to multicast group " + group.toString() + " failed: ";
  if (type_ != QpType::Ud) throw VerbsError("QUORATE_INVALID_ARGUMENT", what + "only UD queue pairs can be");
  if (!isMulticast(group) || lid != 0) {
    throw VerbsError("QUORATE_INVALID_ARGUMENT",
                     what + "a group is ff..., or ::ffff:224.0.0.0 to ::ffff:239.255.255.255, and its LID is 0");
  }
  const std::lock_guard<std::mutex> guard(context_.multicastMutex());
  MulticastEntry* free = nullptr;
  for (MulticastEntry& entry : context_.control()->multicast) {
    if (entry.queuePair.load() == 0) free = &entry;
    if (isMember(entry, group) && entry.queuePair.load() == place_.number) {
      throw VerbsError("QUORATE_INVALID_ARGUMENT", what + "it is attached already");
    }
  }
  if (free == nullptr) {
    throw VerbsError("QUORATE_LIMIT",
                     what + "an shm context has " + std::to_string(kMaxMulticastEntries) + " attachments at most");
  }
  uint64_t high = 0, low = 0;
  halves(group, &high, &low);
  free->groupHigh.store(high, std::memory_order_relaxed);
  free->groupLow.store(low, std::memory_order_relaxed);
  free->queuePair.store(place_.number, std::memory_order_release);
  multicastGroups_++;
}

void ShmQueuePair::detachMulticast(const Gid& group, uint16_t) {
  context_.requireOpen(kind());
  const std::lock_guard<std::mutex> modifying(modifyMutex_);
  if (closed()) throw VerbsError("QUORATE_CLOSED", "This QueuePair was closed");
  const std::lock_guard<std::mutex> guard(context_.multicastMutex());
  for (MulticastEntry& entry : context_.control()->multicast) {
    if (!isMember(entry, group) || entry.queuePair.load() != place_.number) continue;
    entry.queuePair.store(0, std::memory_order_release);
    multicastGroups_--;
    return;
  }
  throw VerbsError("QUORATE_INVALID_ARGUMENT", "Queue pair " + std::to_string(place_.number) +
                                                   " is not attached to multicast group " + group.toString());
}

void ShmQueuePair::detachAllMulticast() {
  if (multicastGroups_ == 0) return;
  const std::lock_guard<std::mutex> guard(context_.multicastMutex());
  for (MulticastEntry& entry : context_.control()->multicast) {
    if (entry.queuePair.load() == place_.number) entry.queuePair.store(0, std::memory_order_release);
  }
  multicastGroups_ = 0;
}

// Looks at every instance there is, each time: multicast is for finding each other, not for speed.
void ShmQueuePair::sendMulticast(const SendWorkRequest& request, const uint8_t* local) {
  const Gid group = request.addressHandle->attributes().dgid;
  std::vector<uint64_t> instances;
  try {
    instances = instancesIn(*context_.directory());
  } catch (const VerbsError&) {
    return;  // the datagram is lost
  }
  for (const uint64_t hcaId : instances) {
    std::shared_ptr<PeerHca> peer;
    try {
      peer = context_.peer(hcaId);
    } catch (const VerbsError&) {
      continue;
    }
    if (peer == nullptr || !peer->alive()) continue;
    for (const MulticastEntry& entry : peer->control()->multicast) {
      if (!isMember(entry, group)) continue;
      peer_ = peer;
      deliverDatagram(request, entry.queuePair.load(std::memory_order_acquire), local);
    }
  }
}

}  // namespace quorate::shm
