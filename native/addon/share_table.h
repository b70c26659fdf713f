// The table through which objects go from one thread of the process to another: a token (a number that can be sent
// with postMessage) for a reference. The table is the only global that threads share, and the reference in it keeps the
// object alive until the token is withdrawn or the object is closed.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "verbs/verbs.h"

namespace quorate::addon {

class ShareTable {
 public:
  static constexpr size_t kMaxTokens = 65536;

  static ShareTable& instance();
  // The object's token, the same one when it is shared again. QUORATE_LIMIT when the table is full. With an owner it is
  // withdrawn by dropOwned(), unless the object is shared without one, too.
  uint64_t share(const std::shared_ptr<VerbsObject>& object, const void* owner = nullptr);
  // QUORATE_INVALID_ARGUMENT for an unknown token, QUORATE_CLOSED for an object that was closed since.
  std::shared_ptr<VerbsObject> find(uint64_t token);
  bool unshare(uint64_t token);
  // Lets go of all objects that were closed, by themselves or with their parent.
  void dropClosed();
  void dropOwned(const void* owner);
  void clear();
  size_t size();

 private:
  std::mutex mutex_;
  static constexpr size_t kSmallestSweep = 64;
  uint64_t nextToken_ = 1;
  size_t sweepAt_ = kSmallestSweep;  // closed objects are looked for when the table has grown to this
  struct Shared {
    std::shared_ptr<VerbsObject> object;
    const void* owner;
  };
  std::unordered_map<uint64_t, Shared> objects_;
  std::unordered_map<const VerbsObject*, uint64_t> tokens_;
};

}  // namespace quorate::addon
