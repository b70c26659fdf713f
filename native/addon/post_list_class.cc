// JavaScript class PostList. `run`, which is on the path of every operation, is a function of each list's own. Its
// arguments and its result are in an array that both sides see: each number that goes through Node-API costs a call.
#include <iterator>
#include <string>
#include <utility>

#include "addon/arguments.h"
#include "addon/environment.h"
#include "addon/post_list.h"

namespace quorate::addon {

namespace {

// Held by the run function and by each external array, so that none outlives the native list.
struct ListHolder {
  ListHolder(std::shared_ptr<Environment> ofEnvironment, std::shared_ptr<PostList> ofList)
      : environment(std::move(ofEnvironment)), list(std::move(ofList)) {
    diagnostics().buffers++;
  }
  ~ListHolder() { diagnostics().buffers--; }
  const std::shared_ptr<Environment> environment;
  const std::shared_ptr<PostList> list;
};

void releaseArray(napi_env, void*, void* hint) {
  delete static_cast<ListHolder*>(hint);
}

Napi::Value externalDoubles(Environment& environment, const std::shared_ptr<PostList>& list, double* data,
                            size_t length) {
  auto* holder = new ListHolder(environment.shared_from_this(), list);
  napi_value buffer = nullptr, array = nullptr;
  const napi_status status =
      napi_create_external_arraybuffer(environment.env(), data, length * sizeof(double), releaseArray, holder, &buffer);
  if (status != napi_ok) {
    delete holder;
    throw VerbsError("QUORATE_UNSUPPORTED",
                     "this JavaScript runtime does not allow array buffers over memory that it does not own");
  }
  if (napi_create_typedarray(environment.env(), napi_float64_array, length, buffer, 0, &array) != napi_ok) {
    throw Napi::Error::New(environment.env());
  }
  return Napi::Value(environment.env(), array);
}

napi_value runCallback(napi_env env, napi_callback_info info) noexcept {
  void* data = nullptr;
  if (napi_get_cb_info(env, info, nullptr, nullptr, nullptr, &data) != napi_ok) return nullptr;
  auto* holder = static_cast<ListHolder*>(data);
  PostList& list = *holder->list;
  double* call = list.call();
  uint64_t requests = 0, spinNs = 0, wanted = 0;
  if (toInteger(call[kCallCount], list.maxWorkRequests() + 1, &requests) &&
      toInteger(call[kCallSpinNs], kMaxSpinNs + 1, &spinNs) &&
      toInteger(call[kCallWanted], list.maxCompletions() + 1, &wanted) && !list.closed()) [[likely]] {
    try {
      call[kCallFilled] = static_cast<double>(list.submit(requests, spinNs, wanted));
    } catch (const VerbsError& error) {
      return guarded(env, holder->environment.get(), [&]() -> napi_value { throw error; });
    } catch (const std::exception& error) {
      return guarded(env, holder->environment.get(), [&]() -> napi_value {
        throw VerbsError("QUORATE_SYSTEM", std::string("unexpected failure: ") + error.what());
      });
    }
    return nullptr;
  }
  return guarded(env, holder->environment.get(), [&]() -> napi_value {
    if (list.closed()) throwClosed("PostList");
    const auto check = [&](CallField field, const char* name, uint64_t max) {
      readInteger(number(env, call[field]), name, 0, max);
    };
    check(kCallCount, "count", list.maxWorkRequests());
    check(kCallSpinNs, "spinNs", kMaxSpinNs);
    check(kCallWanted, "wanted", list.maxCompletions());
    throwInvalidArgument("count, spinNs and wanted must be numbers");
  });
}

template <typename T, Kind kind, void (PostList::*bind)(size_t, std::shared_ptr<T>)>
Napi::Value bindSlot(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  const uint64_t slot = readInteger(info[0], "slot", 0, kPostListSlots - 1);
  std::shared_ptr<T> object;
  if (!info[1].IsNull()) object = readHandleAs<T>(info[1], "object", kind);
  ((*as<PostList>(self)).*bind)(slot, std::move(object));
  return environment.env().Undefined();
}

}  // namespace

std::shared_ptr<VerbsObject> constructPostList(Environment&, const Napi::CallbackInfo& info) {
  auto completionQueue = readHandleAs<CompletionQueue>(info[0], "completionQueue", Kind::CompletionQueue);
  const Napi::Object options = readObject(info[1], "options");
  refuseUnknownMembers(options, "options", {"maxWorkRequests", "maxCompletions"});
  const uint64_t maxWorkRequests =
      readInteger(options.Get("maxWorkRequests"), "maxWorkRequests", 1, kPostListMaxEntries);
  const uint64_t maxCompletions =
      readInteger(options.Get("maxCompletions"), "maxCompletions", maxWorkRequests, kPostListMaxEntries);
  return std::make_shared<PostList>(std::move(completionQueue), maxWorkRequests, maxCompletions);
}

void decoratePostList(Environment& environment, Napi::Object self, const std::shared_ptr<VerbsObject>& object) {
  const auto list = std::static_pointer_cast<PostList>(object);
  napi_env env = environment.env();
  napi_value run =
      ownFunction(env, "run", runCallback, std::make_unique<ListHolder>(environment.shared_from_this(), list));
  const auto own = [](const char* name, napi_value value) {
    return napi_property_descriptor{name, nullptr, nullptr, nullptr, nullptr, value, napi_enumerable, nullptr};
  };
  const napi_property_descriptor properties[] = {
      own("run", run),
      own("call", externalDoubles(environment, list, list->call(), kCallFields)),
      own("workRequests",
          externalDoubles(environment, list, list->workRequests(), list->maxWorkRequests() * kWrStride)),
      own("completions", externalDoubles(environment, list, list->completions(), list->maxCompletions() * kWcStride)),
  };
  if (napi_define_properties(env, self, std::size(properties), properties) != napi_ok) throw Napi::Error::New(env);
}

std::vector<napi_property_descriptor> postListMembers(Environment* environment) {
  constexpr Kind k = Kind::PostList;
  return {
      method<k, bindSlot<QueuePair, Kind::QueuePair, &PostList::bindQueuePair>>(environment, "bindQueuePair"),
      method<k, bindSlot<AddressHandle, Kind::AddressHandle, &PostList::bindAddressHandle>>(environment,
                                                                                            "bindAddressHandle"),
      method<k, bindSlot<Fence, Kind::Fence, &PostList::bindFence>>(environment, "bindFence"),
      method<k, bindSlot<Memory, Kind::Memory, &PostList::bindMemory>>(environment, "bindMemory"),
  };
}

}  // namespace quorate::addon
