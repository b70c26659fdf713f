// See share_table.h. References are always dropped outside the mutex: the last one runs a destructor, which may take
// long (it deregisters memory) and may come back here.
#include "addon/share_table.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

namespace quorate::addon {

ShareTable& ShareTable::instance() {
  static auto* table = new ShareTable;  // never destroyed: threads may still run when static destructors do
  return *table;
}

uint64_t ShareTable::share(const std::shared_ptr<VerbsObject>& object, const void* owner) {
  bool full = false;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    full = objects_.size() >= sweepAt_;
  }
  if (full) dropClosed();
  std::lock_guard<std::mutex> lock(mutex_);
  if (full) sweepAt_ = std::max<size_t>(kSmallestSweep, 2 * objects_.size());
  const auto found = tokens_.find(object.get());
  if (found != tokens_.end()) {
    if (owner == nullptr) objects_.at(found->second).owner = nullptr;
    return found->second;
  }
  if (objects_.size() >= kMaxTokens) {
    throw VerbsError("QUORATE_LIMIT", "no more than " + std::to_string(kMaxTokens) +
                                          " objects can be shared between threads at a time; unshare() those that "
                                          "were adopted");
  }
  const uint64_t token = nextToken_++;
  objects_.emplace(token, Shared{object, owner});
  tokens_.emplace(object.get(), token);
  return token;
}

std::shared_ptr<VerbsObject> ShareTable::find(uint64_t token) {
  std::shared_ptr<VerbsObject> object;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = objects_.find(token);
    if (found == objects_.end()) {
      throw VerbsError("QUORATE_INVALID_ARGUMENT", "token " + std::to_string(token) +
                                                       " names no shared object of this process: it was withdrawn, or "
                                                       "the object was closed, or it is of another process");
    }
    object = found->second.object;
  }
  if (object->closed()) {
    throw VerbsError("QUORATE_CLOSED", std::string("the shared ") + object->kind() + " was closed");
  }
  return object;
}

bool ShareTable::unshare(uint64_t token) {
  std::shared_ptr<VerbsObject> dropped;
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = objects_.find(token);
  if (found == objects_.end()) return false;
  dropped = std::move(found->second.object);
  tokens_.erase(dropped.get());
  objects_.erase(found);
  return true;
}

void ShareTable::dropClosed() {
  std::vector<std::shared_ptr<VerbsObject>> candidates;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    candidates.reserve(objects_.size());
    for (const auto& entry : objects_) candidates.push_back(entry.second.object);
  }
  for (const std::shared_ptr<VerbsObject>& candidate : candidates) {
    if (!candidate->closed()) continue;
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = tokens_.find(candidate.get());
    if (found == tokens_.end()) continue;
    objects_.erase(found->second);  // `candidates` still holds it
    tokens_.erase(found);
  }
}

void ShareTable::dropOwned(const void* owner) {
  std::vector<std::shared_ptr<VerbsObject>> dropped;
  std::lock_guard<std::mutex> lock(mutex_);
  for (auto entry = objects_.begin(); entry != objects_.end();) {
    if (entry->second.owner != owner) {
      ++entry;
      continue;
    }
    tokens_.erase(entry->second.object.get());
    dropped.push_back(std::move(entry->second.object));
    entry = objects_.erase(entry);
  }
}

void ShareTable::clear() {
  std::unordered_map<uint64_t, Shared> dropped;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    dropped.swap(objects_);
    tokens_.clear();
  }
}

size_t ShareTable::size() {
  std::lock_guard<std::mutex> lock(mutex_);
  return objects_.size();
}

}  // namespace quorate::addon
