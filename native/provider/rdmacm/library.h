// librdmacm, opened with dlopen when the first event channel is made, never linked: like libibverbs (see
// provider/ibverbs/library.h), and for the same reason.
#pragma once

#include <string>

#include "provider/rdmacm/abi.h"

namespace quorate::rdmacm {

struct Library {
  abi::EventChannel* (*createEventChannel)() = nullptr;
  void (*destroyEventChannel)(abi::EventChannel*) = nullptr;
  int (*createId)(abi::EventChannel*, abi::Id**, void* context, int portSpace) = nullptr;
  int (*destroyId)(abi::Id*) = nullptr;
  int (*bindAddr)(abi::Id*, sockaddr*) = nullptr;
  int (*resolveAddr)(abi::Id*, sockaddr* source, sockaddr* destination, int timeoutMs) = nullptr;
  int (*resolveRoute)(abi::Id*, int timeoutMs) = nullptr;
  int (*connect)(abi::Id*, abi::ConnectionParameters*) = nullptr;
  int (*establish)(abi::Id*) = nullptr;
  int (*listen)(abi::Id*, int backlog) = nullptr;
  int (*accept)(abi::Id*, abi::ConnectionParameters*) = nullptr;
  int (*reject)(abi::Id*, const void* privateData, uint8_t privateDataLength) = nullptr;
  int (*disconnect)(abi::Id*) = nullptr;
  int (*getCmEvent)(abi::EventChannel*, abi::Event**) = nullptr;
  int (*ackCmEvent)(abi::Event*) = nullptr;
  int (*initQpAttr)(abi::Id*, ibv_qp_attr*, int* mask) = nullptr;
};

// The library, opened once and kept until the process ends. Throws QUORATE_NO_LIBRARY with what the dynamic loader said
// and how to install it; the next call tries again.
const Library& library();

// As above for another file name, not cached; for tests.
Library openLibrary(const std::string& soname);

}  // namespace quorate::rdmacm
