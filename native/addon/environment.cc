// See environment.h.
#include "addon/environment.h"

#include <atomic>
#include <cstring>
#include <string>
#include <vector>

#include "addon/arguments.h"
#include "addon/checksum.h"
#include "addon/first_calls.h"
#include "addon/share_table.h"

namespace quorate::addon {

namespace {

// Tells objects of this addon from those that other addons wrapped.
constexpr napi_type_tag kWrapperTag = {0x6b3f1f0d5a7c4e21ull, 0x9d0c8f3372e14b56ull};

constexpr const char* kKindNames[kKinds] = {
    "Context",         "Memory",      "MemoryRegion",  "ProtectionDomain",   "CompletionChannel",
    "CompletionQueue", "QueuePair",   "Fence",         "Notifier",           "PostList",
    "Waiter",          "PeerProcess", "AddressHandle", "SharedReceiveQueue", "MemoryWindow",
    "CmEventChannel",  "CmId",        "ExitHold"};

void check(napi_env env, napi_status status) {
  if (status != napi_ok) throw Napi::Error::New(Napi::Env(env));
}

Napi::Value getKind(Environment& environment, const Napi::CallbackInfo&, Wrapper& wrapper) {
  return Napi::String::New(environment.env(), kindName(wrapper.kind));
}

Napi::Value getClosed(Environment& environment, const Napi::CallbackInfo&, Wrapper& wrapper) {
  return Napi::Boolean::New(environment.env(), wrapper.object->closed());
}

Napi::Value closeObject(Environment& environment, const Napi::CallbackInfo&, Wrapper& wrapper) {
  const std::shared_ptr<VerbsObject> object = wrapper.object;
  try {
    object->close();
  } catch (...) {
    stopWatchingClosed(environment);  // children that were closed before one refused
    throw;
  }
  stopWatchingClosed(environment);
  // Only after a close that succeeded: a MemoryRegion whose right could not be revoked stays usable, and visible.
  if (wrapper.kind == Kind::Memory) environment.detachBuffer(static_cast<const Memory*>(object.get()));
  if (wrapper.kind == Kind::PeerProcess) environment.letGo(wrapper);
  ShareTable::instance().dropClosed();
  return environment.env().Undefined();
}

Napi::Value shareObject(Environment& environment, const Napi::CallbackInfo& info, Wrapper& wrapper) {
  const bool untilThreadEnds = info[0].IsBoolean() && info[0].As<Napi::Boolean>().Value();
  const void* owner = untilThreadEnds ? &environment : nullptr;
  return number(environment.env(), static_cast<double>(ShareTable::instance().share(wrapper.object, owner)));
}

template <Kind kind>
std::vector<napi_property_descriptor> commonMembers(Environment* environment) {
  std::vector<napi_property_descriptor> members = {
      getter<kind, getKind, true>(environment, "kind"),
      getter<kind, getClosed, true>(environment, "closed"),
      method<kind, closeObject, true>(environment, "close"),
  };
  if (kind != Kind::PostList) members.push_back(method<kind, shareObject>(environment, "share"));
  return members;
}

template <Kind kind>
std::vector<napi_property_descriptor> membersOf(Environment* environment,
                                                std::vector<napi_property_descriptor> (*own)(Environment*)) {
  std::vector<napi_property_descriptor> members = commonMembers<kind>(environment);
  for (const napi_property_descriptor& member : own(environment)) members.push_back(member);
  return members;
}

Napi::Value setErrorClassFunction(Environment& environment, const Napi::CallbackInfo& info) {
  if (!info[0].IsFunction()) throwInvalidArgument("errorClass must be a class");
  environment.setErrorClass(info[0].As<Napi::Function>());
  return environment.env().Undefined();
}

Napi::Value adoptFunction(Environment& environment, const Napi::CallbackInfo& info) {
  const uint64_t token = readInteger(info[0], "token", 1, kMaxSafeInteger);
  return environment.wrap(ShareTable::instance().find(token));
}

Napi::Value unshareFunction(Environment& environment, const Napi::CallbackInfo& info) {
  const uint64_t token = readInteger(info[0], "token", 1, kMaxSafeInteger);
  return Napi::Boolean::New(environment.env(), ShareTable::instance().unshare(token));
}

Napi::Value diagnosticsFunction(Environment& environment, const Napi::CallbackInfo&) {
  Napi::Env env = environment.env();
  Napi::Object result = Napi::Object::New(env);
  result.Set("wrappers", number(env, static_cast<double>(diagnostics().wrappers.load())));
  result.Set("buffers", number(env, static_cast<double>(diagnostics().buffers.load())));
  result.Set("sharedTokens", number(env, static_cast<double>(ShareTable::instance().size())));
  result.Set("environments", number(env, static_cast<double>(diagnostics().environments.load())));
  return result;
}

// About what a native object takes, so that the collector knows that there is more to a wrapper than the wrapper: a
// closed context that nobody collects is some hundred kilobytes.
int64_t nativeBytes(Kind kind) {
  switch (kind) {
    case Kind::Context:
      return 320 << 10;
    case Kind::QueuePair:
    case Kind::CompletionQueue:
    case Kind::SharedReceiveQueue:
      return 16 << 10;
    default:
      return 1 << 10;
  }
}

// What is left of a PeerProcess that was closed.
class ClosedPeerProcess final : public PeerProcess {
 public:
  bool alive() const override { return false; }
  std::atomic<uint32_t>* livenessWord() const override { return nullptr; }
  void close() override {}
  bool closed() const override { return true; }
};

struct BufferHint {
  std::shared_ptr<Environment> environment;
  std::shared_ptr<Memory> memory;
  napi_ref reference = nullptr;
};

}  // namespace

const char* kindName(Kind kind) {
  return kKindNames[static_cast<size_t>(kind)];
}

Kind kindOf(const VerbsObject& object) {
  for (size_t i = 0; i < kKinds; i++) {
    if (std::strcmp(object.kind(), kKindNames[i]) == 0) return static_cast<Kind>(i);
  }
  throw VerbsError("QUORATE_SYSTEM", std::string("no JavaScript class for native objects of kind ") + object.kind());
}

Diagnostics& diagnostics() {
  static auto* counts = new Diagnostics;  // never destroyed: workers may outlive static destructors
  return *counts;
}

void throwClosed(const char* kind) {
  throw VerbsError("QUORATE_CLOSED", std::string("this ") + kind + " is closed; make a new one");
}

Environment::Environment(napi_env env) : env_(env) {
  diagnostics().environments++;
}

Environment::~Environment() {
  endFirstCalls(*this);
  ShareTable::instance().dropOwned(this);  // the thread may have been terminated before it could withdraw them
  // The last thread that leaves takes down what is still in the share table: nobody can adopt it any more, and the
  // files behind it would otherwise stay behind.
  if (--diagnostics().environments == 0) ShareTable::instance().clear();
}

void Environment::attach(Napi::Env env, Napi::Object exports) {
  auto environment = std::make_shared<Environment>(env);
  check(env, napi_set_instance_data(
                 env, new std::shared_ptr<Environment>(environment),
                 [](napi_env, void* data, void*) {
                   auto* holder = static_cast<std::shared_ptr<Environment>*>(data);
                   // References into an engine that is going away must not be touched by the destructor later.
                   for (ClassEntry& entry : (*holder)->classes_) entry.constructor.Reset();
                   (*holder)->errorClass_.Reset();
                   delete holder;
                 },
                 nullptr));
  Environment* self = environment.get();
  self->defineClass(exports, Kind::Context, membersOf<Kind::Context>(self, contextMembers), false);
  self->defineClass(exports, Kind::Memory, membersOf<Kind::Memory>(self, memoryMembers), false);
  self->defineClass(exports, Kind::MemoryRegion, membersOf<Kind::MemoryRegion>(self, memoryRegionMembers), false);
  self->defineClass(exports, Kind::MemoryWindow, membersOf<Kind::MemoryWindow>(self, memoryWindowMembers), false);
  self->defineClass(exports, Kind::ProtectionDomain, membersOf<Kind::ProtectionDomain>(self, protectionDomainMembers),
                    false);
  self->defineClass(exports, Kind::CompletionChannel,
                    membersOf<Kind::CompletionChannel>(self, completionChannelMembers), false);
  self->defineClass(exports, Kind::CompletionQueue, membersOf<Kind::CompletionQueue>(self, completionQueueMembers),
                    false);
  self->defineClass(exports, Kind::QueuePair, membersOf<Kind::QueuePair>(self, queuePairMembers), false);
  self->defineClass(exports, Kind::AddressHandle, membersOf<Kind::AddressHandle>(self, addressHandleMembers), false);
  self->defineClass(exports, Kind::SharedReceiveQueue,
                    membersOf<Kind::SharedReceiveQueue>(self, sharedReceiveQueueMembers), false);
  self->defineClass(exports, Kind::Fence, membersOf<Kind::Fence>(self, fenceMembers), true);
  self->defineClass(exports, Kind::Notifier, membersOf<Kind::Notifier>(self, notifierMembers), true);
  self->defineClass(exports, Kind::PostList, membersOf<Kind::PostList>(self, postListMembers), true);
  self->defineClass(exports, Kind::Waiter, membersOf<Kind::Waiter>(self, waiterMembers), true);
  self->defineClass(exports, Kind::PeerProcess, membersOf<Kind::PeerProcess>(self, peerProcessMembers), false);
  self->defineClass(exports, Kind::CmEventChannel, membersOf<Kind::CmEventChannel>(self, cmEventChannelMembers), false);
  self->defineClass(exports, Kind::CmId, membersOf<Kind::CmId>(self, cmIdMembers), false);
  self->defineClass(exports, Kind::ExitHold, membersOf<Kind::ExitHold>(self, exitHoldMembers), true);

  std::vector<napi_property_descriptor> functions = {
      function<setErrorClassFunction>(self, "setErrorClass"),
      function<adoptFunction>(self, "adopt"),
      function<unshareFunction>(self, "unshare"),
      function<diagnosticsFunction>(self, "diagnostics"),
  };
  for (const auto& more : {deviceFunctions(self), waitFunctions(self), cmFunctions(self), checksumFunctions(self),
                           firstCallFunctions(self)}) {
    functions.insert(functions.end(), more.begin(), more.end());
  }
  check(env, napi_define_properties(env, exports, functions.size(), functions.data()));
}

void Environment::defineClass(Napi::Object exports, Kind kind, const std::vector<napi_property_descriptor>& properties,
                              bool exported) {
  ClassEntry& entry = classes_[static_cast<size_t>(kind)];
  entry.environment = this;
  entry.kind = kind;
  napi_value constructor = nullptr;
  check(env_, napi_define_class(env_, kindName(kind), NAPI_AUTO_LENGTH, construct, &entry, properties.size(),
                                properties.data(), &constructor));
  entry.constructor = Napi::Persistent(Napi::Function(env_, constructor));
  if (exported) exports.Set(kindName(kind), Napi::Function(env_, constructor));
}

napi_value Environment::construct(napi_env env, napi_callback_info raw) {
  void* data = nullptr;
  if (napi_get_cb_info(env, raw, nullptr, nullptr, nullptr, &data) != napi_ok) return nullptr;
  auto* entry = static_cast<ClassEntry*>(data);
  Environment& environment = *entry->environment;
  return guarded(env, &environment, [&]() -> napi_value {
    Napi::CallbackInfo info(env, raw);
    if (!info.IsConstructCall()) {
      throwInvalidArgument(std::string("class ") + kindName(entry->kind) + " must be called with new");
    }
    std::shared_ptr<VerbsObject> object = std::exchange(environment.pending_, nullptr);
    if (object == nullptr) {
      switch (entry->kind) {
        case Kind::Fence:
          object = constructFence(environment, info);
          break;
        case Kind::Notifier:
          object = constructNotifier(environment, info);
          break;
        case Kind::ExitHold:
          object = constructExitHold(environment, info);
          break;
        case Kind::Waiter:
          object = constructWaiter(environment, info);
          break;
        case Kind::PostList:
          object = constructPostList(environment, info);
          break;
        default:
          throwInvalidArgument(std::string("a ") + kindName(entry->kind) +
                               " cannot be made with new; openDevice() and the methods of its parent make them");
      }
    }
    environment.bind(info.This(), object);
    if (entry->kind == Kind::PostList) decoratePostList(environment, info.This().As<Napi::Object>(), object);
    if (entry->kind == Kind::Waiter) decorateWaiter(environment, info.This().As<Napi::Object>(), object);
    return info.This();
  });
}

void Environment::bind(napi_value self, std::shared_ptr<VerbsObject> object) {
  const VerbsObject* key = object.get();
  auto wrapper = std::make_unique<Wrapper>(Wrapper{kindOf(*object), std::move(object), shared_from_this()});
  check(env_, napi_type_tag_object(env_, self, &kWrapperTag));
  check(env_, napi_wrap(env_, self, wrapper.get(), finalizeWrapper, nullptr, &wrapper->weakReference));
  diagnostics().wrappers++;
  int64_t total = 0;
  napi_adjust_external_memory(env_, nativeBytes(wrapper->kind), &total);
  wrappers_[key] = wrapper.release();
}

void Environment::finalizeWrapper(napi_env env, void* data, void*) {
  std::unique_ptr<Wrapper> wrapper(static_cast<Wrapper*>(data));
  const std::shared_ptr<Environment> environment = wrapper->environment;
  // Between collection and this call a new wrapper may have taken the place.
  const auto found = environment->wrappers_.find(wrapper->object.get());
  if (found != environment->wrappers_.end() && found->second == wrapper.get()) environment->wrappers_.erase(found);
  napi_delete_reference(env, wrapper->weakReference);
  diagnostics().wrappers--;
  int64_t total = 0;
  napi_adjust_external_memory(env, -nativeBytes(wrapper->kind), &total);
  try {
    wrapper->object.reset();
  } catch (...) {
    // A destructor that threw would have ended the process already; nothing to report to from a finalizer.
  }
}

void Environment::letGo(Wrapper& wrapper) {
  const auto found = wrappers_.find(wrapper.object.get());
  if (found != wrappers_.end() && found->second == &wrapper) wrappers_.erase(found);
  wrapper.object = std::make_shared<ClosedPeerProcess>();
}

Wrapper* Environment::unwrap(napi_env env, napi_value value) {
  napi_valuetype type = napi_undefined;
  if (napi_typeof(env, value, &type) != napi_ok || type != napi_object) return nullptr;
  bool tagged = false;
  if (napi_check_object_type_tag(env, value, &kWrapperTag, &tagged) != napi_ok || !tagged) return nullptr;
  void* data = nullptr;
  if (napi_unwrap(env, value, &data) != napi_ok) return nullptr;
  return static_cast<Wrapper*>(data);
}

Napi::Value Environment::wrap(std::shared_ptr<VerbsObject> object) {
  const auto found = wrappers_.find(object.get());
  if (found != wrappers_.end()) {
    napi_value existing = nullptr;
    check(env_, napi_get_reference_value(env_, found->second->weakReference, &existing));
    if (existing != nullptr) return Napi::Value(env_, existing);
  }
  ClassEntry& entry = classes_[static_cast<size_t>(kindOf(*object))];
  pending_ = std::move(object);
  try {
    return entry.constructor.New({});
  } catch (...) {
    pending_ = nullptr;
    throw;
  }
}

Napi::Value Environment::bufferOf(const std::shared_ptr<Memory>& memory) {
  const auto found = buffers_.find(memory.get());
  if (found != buffers_.end()) {
    napi_value existing = nullptr;
    check(env_, napi_get_reference_value(env_, found->second, &existing));
    if (existing != nullptr) return Napi::Value(env_, existing);
  }
  auto hint = std::make_unique<BufferHint>(BufferHint{shared_from_this(), memory});
  const auto release = [](napi_env env, void*, void* data) {
    std::unique_ptr<BufferHint> hint(static_cast<BufferHint*>(data));
    auto& buffers = hint->environment->buffers_;
    const auto found = buffers.find(hint->memory.get());
    if (found != buffers.end() && found->second == hint->reference) buffers.erase(found);
    if (hint->reference != nullptr) napi_delete_reference(env, hint->reference);
    diagnostics().buffers--;
  };
  napi_value buffer = nullptr;
  diagnostics().buffers++;
  BufferHint* owned = hint.release();
  const napi_status status =
      napi_create_external_arraybuffer(env_, memory->data(), memory->length(), release, owned, &buffer);
  if (status != napi_ok) {
    // With an exception the engine has taken the hint, though it made no buffer, and calls `release`; else it has not.
    bool thrown = false;
    if (napi_is_exception_pending(env_, &thrown) == napi_ok && thrown) {
      napi_value exception = nullptr;
      check(env_, napi_get_and_clear_last_exception(env_, &exception));
      throw VerbsError("QUORATE_UNSUPPORTED", "this JavaScript runtime has no array buffers of " +
                                                  std::to_string(memory->length()) +
                                                  " bytes (the most is MAX_LENGTH of node:buffer); allocate several "
                                                  "memories");
    }
    hint.reset(owned);
    diagnostics().buffers--;
  }
  if (status == napi_no_external_buffers_allowed) {
    throw VerbsError("QUORATE_UNSUPPORTED",
                     "this JavaScript runtime does not allow array buffers over memory that it does not own "
                     "(Electron, or Node.js built with pointer compression); run the replica in Node.js");
  }
  check(env_, status);
  // From here on the engine calls `release`.
  check(env_, napi_create_reference(env_, buffer, 0, &owned->reference));
  buffers_[memory.get()] = owned->reference;
  return Napi::Value(env_, buffer);
}

void Environment::detachBuffer(const Memory* memory) {
  const auto found = buffers_.find(memory);
  if (found == buffers_.end()) return;
  napi_value buffer = nullptr;
  check(env_, napi_get_reference_value(env_, found->second, &buffer));
  if (buffer == nullptr) return;
  bool detached = false;
  check(env_, napi_is_detached_arraybuffer(env_, buffer, &detached));
  if (!detached) check(env_, napi_detach_arraybuffer(env_, buffer));
}

void Environment::setErrorClass(Napi::Function errorClass) {
  errorClass_ = Napi::Persistent(errorClass);
}

Napi::Value Environment::makeError(const VerbsError& error) {
  Napi::Env env(env_);
  const Napi::String code = Napi::String::New(env, error.code);
  const Napi::String message = Napi::String::New(env, error.what());
  Napi::Object details = Napi::Object::New(env);
  if (error.errnum != 0) details.Set("errno", number(env, error.errnum));
  if (!error.syscall.empty()) details.Set("syscall", Napi::String::New(env, error.syscall));
  const bool isType = error.code == "QUORATE_INVALID_ARGUMENT";
  const bool isRange = error.code == "QUORATE_OUT_OF_RANGE";
  if (!isType && !isRange && !errorClass_.IsEmpty()) return errorClass_.New({code, message, details});
  napi_value made = nullptr;
  check(env_, isType    ? napi_create_type_error(env_, code, message, &made)
              : isRange ? napi_create_range_error(env_, code, message, &made)
                        : napi_create_error(env_, code, message, &made));
  Napi::Object object(env_, made);
  if (error.errnum != 0) object.Set("errno", details.Get("errno"));
  if (!error.syscall.empty()) object.Set("syscall", details.Get("syscall"));
  return object;
}

void Environment::throwError(const VerbsError& error) {
  bool pending = false;
  if (napi_is_exception_pending(env_, &pending) != napi_ok || pending) return;
  try {
    napi_throw(env_, makeError(error));
  } catch (const Napi::Error& failure) {
    failure.ThrowAsJavaScriptException();
  }
}

}  // namespace quorate::addon
