// Stands in for libcuda where there is no GPU: one GPU of 9.0, and the last launch for a test to look at.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  unsigned grid[3], block[3], shared_bytes;
  void* stream;
  struct { unsigned id, pad; int value; int rest[15]; }* attributes;
  unsigned attribute_count;
} Config;

static void *stack[64], *const PRIMARY = (void*)0x1000;
static int depth = 0;

Config last;
uint64_t last_values[32];
int last_attribute[2], launches, loads, refuse, needs_context, argument_count, shared_asked, largest_block = 1024;
int major = 9, minor = 0, all_equal, mixed;
void* last_function;

int cuInit(unsigned flags) { return 0; }
int cuDeviceGet(int* device, int index) { return index ? 101 : (*device = 0); }
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  *value = attribute == 75 ? major : attribute == 76 ? minor : 0;
  return 0;
}
int cuDevicePrimaryCtxRetain(void** context, int device) { *context = PRIMARY; return 0; }
int cuCtxPushCurrent_v2(void* context) { stack[depth++] = context; return 0; }
int cuCtxPopCurrent_v2(void** context) { *context = stack[--depth]; return 0; }
int cuCtxGetCurrent(void** context) { *context = depth ? stack[depth - 1] : 0; return 0; }
int cuModuleLoadData(void** module, const void* code) {
  if (memcmp(code, "\177ELF", 4)) return 200;
  ++loads;
  *module = (void*)0x2000;
  return 0;
}
int cuModuleGetFunction(void** function, void* module, const char* name) {
  *function = (void*)(0x700000003000ull + 16 * strlen(name));
  return 0;
}
int cuFuncGetAttribute(int* value, int attribute, void* function) {
  *value = attribute == 4 ? 32 : attribute == 0 ? largest_block : 0;
  return 0;
}
int cuFuncSetAttribute(void* function, int attribute, int value) {
  if (attribute == 8) shared_asked = value;
  return 0;
}
int cuGetErrorName(int status, const char** text) { *text = "CUDA_ERROR_SOMETHING"; return 0; }
int cuGetErrorString(int status, const char** text) { *text = "something is wrong"; return 0; }

int cuLaunchKernelEx(const Config* config, void* function, void** values, void** extra) {
  if (refuse) return refuse;
  if (needs_context && !depth) return 201;
  last = *config;
  last_function = function;
  last_attribute[0] = config->attribute_count ? config->attributes->id : 0;
  last_attribute[1] = config->attribute_count ? config->attributes->value : 0;
  for (int i = 0; i < argument_count; ++i) last_values[i] = *(uint64_t*)values[i];
  for (int i = 1; all_equal && i < argument_count; ++i)
    if (last_values[i] != last_values[0] || (uint64_t)config->stream != last_values[0]) ++mixed;
  ++launches;
  return 0;
}
// As cheap as a launch can be: for what the Python before it costs.
