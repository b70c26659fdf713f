// What the addon keeps per JavaScript environment (the main thread and each worker have one): the classes, and the
// one-to-one map between native objects and their JavaScript objects. Every native object is held by a shared_ptr in
// its JavaScript wrapper; collecting the wrapper drops that reference and nothing else, so the order in which the
// garbage collector (or the end of a worker) drops wrappers does not matter: a child holds its parent.
#pragma once

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <memory>
#include <new>
#include <string>
#include <unordered_map>
#include <vector>

#include "napi_support.h"
#include "verbs/verbs.h"

namespace quorate::addon {

enum class Kind : uint8_t {
  Context,
  Memory,
  MemoryRegion,
  ProtectionDomain,
  CompletionChannel,
  CompletionQueue,
  QueuePair,
  Fence,
  Notifier,
  PostList,
  Waiter,
  PeerProcess,
  AddressHandle,
  SharedReceiveQueue,
  MemoryWindow,
  CmEventChannel,
  CmId,
  ExitHold,
};
constexpr size_t kKinds = 18;
const char* kindName(Kind kind);
// The kind that VerbsObject::kind() names.
Kind kindOf(const VerbsObject& object);

inline Napi::Value number(Napi::Env env, double value) {
  return Napi::Number::New(env, value);
}

class Environment;
class EventWatcher;

// What a JavaScript object of this addon points to.
struct Wrapper {
  Kind kind;
  std::shared_ptr<VerbsObject> object;
  std::shared_ptr<Environment> environment;
  napi_ref weakReference = nullptr;
};

class Environment : public std::enable_shared_from_this<Environment> {
 public:
  // Defines the classes and puts them into `exports`.
  static void attach(Napi::Env env, Napi::Object exports);
  explicit Environment(napi_env env);
  ~Environment();
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

  Napi::Env env() const { return Napi::Env(env_); }

  // The JavaScript object of a native one: the existing one if it is alive, else a new one.
  Napi::Value wrap(std::shared_ptr<VerbsObject> object);
  // Makes `self` (under construction) the JavaScript object of `object`.
  void bind(napi_value self, std::shared_ptr<VerbsObject> object);
  // The JavaScript object of a process that was closed holds nothing of it any more: descriptors do not wait for the
  // collector, which may never run in a thread that allocates nothing. Other threads have objects of their own.
  void letGo(Wrapper& wrapper);
  // The wrapper behind a value, nullptr if the value is not an object of this addon.
  static Wrapper* unwrap(napi_env env, napi_value value);

  // The ArrayBuffer over a memory in this environment, made on first use.
  Napi::Value bufferOf(const std::shared_ptr<Memory>& memory);
  // Detaches that ArrayBuffer if there is one: its length becomes 0.
  void detachBuffer(const Memory* memory);

  // Throws into JavaScript: TypeError, RangeError or the class given to setErrorClass, with code, errno and syscall.
  void throwError(const VerbsError& error);
  Napi::Value makeError(const VerbsError& error);
  void setErrorClass(Napi::Function errorClass);

  // Watchers of events in this thread's event loop, by what they watch. A watcher removes itself when it closes.
  std::unordered_map<const VerbsObject*, EventWatcher*> watchers;
  // See first_calls.h.
  size_t firstCalls = 0;

 private:
  void defineClass(Napi::Object exports, Kind kind, const std::vector<napi_property_descriptor>& properties,
                   bool exported);
  static napi_value construct(napi_env env, napi_callback_info info);
  static void finalizeWrapper(napi_env env, void* data, void* hint);

  const napi_env env_;
  struct ClassEntry {
    Environment* environment;
    Kind kind;
    Napi::FunctionReference constructor;
  };
  std::array<ClassEntry, kKinds> classes_;
  Napi::FunctionReference errorClass_;
  std::shared_ptr<VerbsObject> pending_;  // what the constructor that is about to run shall wrap
  std::unordered_map<const VerbsObject*, Wrapper*> wrappers_;
  std::unordered_map<const Memory*, napi_ref> buffers_;
};

// Counts of the whole process, for tests and leak checks.
struct Diagnostics {
  std::atomic<int64_t> wrappers{0};
  std::atomic<int64_t> buffers{0};
  std::atomic<int64_t> environments{0};
};
Diagnostics& diagnostics();

// What no provider throws by intention, as an error with a code.
inline VerbsError unexpected(const std::exception& error) {
  if (dynamic_cast<const std::bad_alloc*>(&error) != nullptr) {
    return VerbsError("QUORATE_SYSTEM", "out of memory in the addon", ENOMEM);
  }
  return VerbsError("QUORATE_SYSTEM", std::string("unexpected failure: ") + error.what());
}

// Runs a body that may throw and turns what it throws into a JavaScript exception. Nothing escapes into the engine.
template <typename Body>
napi_value guarded(napi_env env, Environment* environment, Body&& body) noexcept {
  try {
    try {
      return body();
    } catch (const VerbsError& error) {
      environment->throwError(error);
    } catch (const Napi::Error& error) {
      error.ThrowAsJavaScriptException();
    } catch (const std::exception& error) {
      environment->throwError(unexpected(error));
    }
  } catch (...) {
    // Making the JavaScript error failed: the environment is being torn down. There is nobody left to tell.
    (void)env;
  }
  return nullptr;
}

[[noreturn]] void throwClosed(const char* kind);

using MethodBody = Napi::Value (*)(Environment&, const Napi::CallbackInfo&, Wrapper&);
using FunctionBody = Napi::Value (*)(Environment&, const Napi::CallbackInfo&);

// A method or getter of a class. The receiver is checked: a method taken from its prototype and applied to something
// else must not reach foreign memory.
template <Kind kind, MethodBody body, bool evenIfClosed = false>
napi_value methodCallback(napi_env env, napi_callback_info raw) noexcept {
  void* data = nullptr;
  if (napi_get_cb_info(env, raw, nullptr, nullptr, nullptr, &data) != napi_ok) return nullptr;
  auto* environment = static_cast<Environment*>(data);
  return guarded(env, environment, [&]() -> napi_value {
    Napi::CallbackInfo info(env, raw);
    Wrapper* wrapper = Environment::unwrap(env, info.This());
    if (wrapper == nullptr || wrapper->kind != kind) {
      throw VerbsError("QUORATE_INVALID_ARGUMENT",
                       std::string("method of ") + kindName(kind) + " called on another object");
    }
    const std::shared_ptr<VerbsObject> keepAlive = wrapper->object;
    if (!evenIfClosed && keepAlive->closed()) throwClosed(kindName(kind));
    return body(*environment, info, *wrapper);
  });
}

template <FunctionBody body>
napi_value functionCallback(napi_env env, napi_callback_info raw) noexcept {
  void* data = nullptr;
  if (napi_get_cb_info(env, raw, nullptr, nullptr, nullptr, &data) != napi_ok) return nullptr;
  auto* environment = static_cast<Environment*>(data);
  return guarded(env, environment, [&]() -> napi_value {
    Napi::CallbackInfo info(env, raw);
    return body(*environment, info);
  });
}

// Property descriptors of a class.
template <Kind kind, MethodBody body, bool evenIfClosed = false>
napi_property_descriptor method(Environment* environment, const char* name) {
  return {name,       nullptr, methodCallback<kind, body, evenIfClosed>, nullptr, nullptr, nullptr, napi_default_method,
          environment};
}
template <Kind kind, MethodBody body, bool evenIfClosed = false>
napi_property_descriptor getter(Environment* environment, const char* name) {
  return {name,    nullptr, nullptr,           methodCallback<kind, body, evenIfClosed>,
          nullptr, nullptr, napi_configurable, environment};
}
template <FunctionBody body>
napi_property_descriptor function(Environment* environment, const char* name) {
  return {name, nullptr, functionCallback<body>, nullptr, nullptr, nullptr, napi_enumerable, environment};
}

// A function of one object's own, with `holder` as its closure data: where an object is used all the time this saves
// the checks and the unwrapping that a method needs. The holder goes with the function.
template <typename Holder>
napi_value ownFunction(napi_env env, const char* name, napi_callback callback, std::unique_ptr<Holder> holder) {
  napi_value function = nullptr;
  if (napi_create_function(env, name, NAPI_AUTO_LENGTH, callback, holder.get(), &function) != napi_ok ||
      napi_add_finalizer(
          env, function, holder.get(), [](napi_env, void* data, void*) { delete static_cast<Holder*>(data); }, nullptr,
          nullptr) != napi_ok) {
    throw Napi::Error::New(env);
  }
  holder.release();
  return function;
}

template <typename T>
const std::shared_ptr<T> as(const Wrapper& wrapper) {
  return std::static_pointer_cast<T>(wrapper.object);
}

// Ends this environment's watching of all objects that are closed by now, with a parent for example.
void stopWatchingClosed(Environment& environment);

// Each file of classes contributes its members. The members of all objects (kind, closed, close, share) come with them.
std::vector<napi_property_descriptor> contextMembers(Environment* environment);
std::vector<napi_property_descriptor> memoryMembers(Environment* environment);
std::vector<napi_property_descriptor> memoryRegionMembers(Environment* environment);
std::vector<napi_property_descriptor> memoryWindowMembers(Environment* environment);
std::vector<napi_property_descriptor> protectionDomainMembers(Environment* environment);
std::vector<napi_property_descriptor> completionChannelMembers(Environment* environment);
std::vector<napi_property_descriptor> completionQueueMembers(Environment* environment);
std::vector<napi_property_descriptor> queuePairMembers(Environment* environment);
std::vector<napi_property_descriptor> addressHandleMembers(Environment* environment);
std::vector<napi_property_descriptor> sharedReceiveQueueMembers(Environment* environment);
std::vector<napi_property_descriptor> fenceMembers(Environment* environment);
std::vector<napi_property_descriptor> exitHoldMembers(Environment* environment);
std::vector<napi_property_descriptor> notifierMembers(Environment* environment);
std::vector<napi_property_descriptor> postListMembers(Environment* environment);
std::vector<napi_property_descriptor> waiterMembers(Environment* environment);
std::vector<napi_property_descriptor> peerProcessMembers(Environment* environment);
std::vector<napi_property_descriptor> cmEventChannelMembers(Environment* environment);
std::vector<napi_property_descriptor> cmIdMembers(Environment* environment);
std::vector<napi_property_descriptor> cmFunctions(Environment* environment);
std::vector<napi_property_descriptor> deviceFunctions(Environment* environment);
std::vector<napi_property_descriptor> waitFunctions(Environment* environment);

// Constructors that JavaScript may call.
std::shared_ptr<VerbsObject> constructFence(Environment& environment, const Napi::CallbackInfo& info);
std::shared_ptr<VerbsObject> constructExitHold(Environment& environment, const Napi::CallbackInfo& info);
std::shared_ptr<VerbsObject> constructNotifier(Environment& environment, const Napi::CallbackInfo& info);
std::shared_ptr<VerbsObject> constructWaiter(Environment& environment, const Napi::CallbackInfo& info);
std::shared_ptr<VerbsObject> constructPostList(Environment& environment, const Napi::CallbackInfo& info);
// Adds the arrays and the submit function to a list under construction.
void decoratePostList(Environment& environment, Napi::Object self, const std::shared_ptr<VerbsObject>& object);
// Adds the function that waits.
void decorateWaiter(Environment& environment, Napi::Object self, const std::shared_ptr<VerbsObject>& object);

}  // namespace quorate::addon
