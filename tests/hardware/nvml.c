/* A stand-in for the library of the NVIDIA driver (libnvidia-ml.so.1).
 *
 * Reads its GPUs from the file "state" in its own folder, again with each call, so that a test can change them:
 *
 *   init CODE                                             nvmlInit_v2 returns this
 *   hang                                                  nvmlInit_v2 never returns
 *   gpu UUID NAME TOTAL_MIB USED_MIB BUSY DEGREES STATE   STATE is ok, lost or mig; underscores of NAME become spaces
 *   instance UUID NAME TOTAL_MIB USED_MIB                 a MIG instance of the GPU above it
 *
 * With -DWITHOUT_INIT or -DWITHOUT_MEMORY it lacks a function, as a damaged or an old library does.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, GPU_IS_LOST = 15 };
enum { MOST = 16, INSTANCES = 7 };

typedef struct {
    char uuid[96], name[96], state[16];
    unsigned long long total, used;
    unsigned busy, degrees;
} Gpu;

typedef struct {
    int init, hang, count;
    int instances[MOST];
    Gpu gpus[MOST][1 + INSTANCES]; /* A GPU, then its instances. */
} Driver;

typedef struct {
    unsigned version;
    unsigned long long total, reserved, free, used;
} Memory;

typedef struct {
    unsigned gpu, memory;
} Utilization;

static __thread Driver driver;

static void read_state(void) {
    Dl_info self;
    char path[4096], line[512];
    memset(&driver, 0, sizeof driver);
    if (!dladdr((void *)read_state, &self)) return;
    snprintf(path, sizeof path - 8, "%s", self.dli_fname);
    char *slash = strrchr(path, '/');
    strcpy(slash ? slash + 1 : path, "state");
    FILE *file = fopen(path, "r");
    if (!file) return;
    while (fgets(line, sizeof line, file)) {
        Gpu gpu = {.state = "ok"};
        if (sscanf(line, "init %d", &driver.init) == 1) continue;
        if (strncmp(line, "hang", 4) == 0) driver.hang = 1;
        int whole = sscanf(line, "gpu %95s %95s %llu %llu %u %u %15s", gpu.uuid, gpu.name, &gpu.total, &gpu.used,
                           &gpu.busy, &gpu.degrees, gpu.state) == 7;
        int part = !whole && sscanf(line, "instance %95s %95s %llu %llu", gpu.uuid, gpu.name, &gpu.total, &gpu.used) == 4;
        for (char *c = gpu.name; *c; c++)
            if (*c == '_') *c = ' ';
        if (whole && driver.count < MOST) driver.gpus[driver.count++][0] = gpu;
        if (part && driver.count > 0 && driver.instances[driver.count - 1] < INSTANCES)
            driver.gpus[driver.count - 1][++driver.instances[driver.count - 1]] = gpu;
    }
    fclose(file);
}

/* A handle is the number of a GPU and of its instance, plus one, so that no handle is zero. */
static void *handle(int gpu, int instance) { return (void *)(long)(1 + gpu * (1 + INSTANCES) + instance); }

static int find(void *device, Gpu **gpu) {
    long number = (long)device - 1;
    read_state();
    if (number < 0 || number / (1 + INSTANCES) >= driver.count) return INVALID_ARGUMENT;
    if (strcmp(driver.gpus[number / (1 + INSTANCES)][0].state, "lost") == 0) return GPU_IS_LOST;
    *gpu = &driver.gpus[number / (1 + INSTANCES)][number % (1 + INSTANCES)];
    return SUCCESS;
}

static int text(const char *from, char *to, unsigned size) {
    if (strlen(from) >= size) return INSUFFICIENT_SIZE;
    strcpy(to, from);
    return SUCCESS;
}

#ifndef WITHOUT_INIT
int nvmlInit_v2(void) {
    read_state();
    while (driver.hang) sleep(1);
    return driver.init;
}
#endif

int nvmlShutdown(void) { return SUCCESS; }

int nvmlSystemGetDriverVersion(char *version, unsigned size) { return text("580.82.07", version, size); }

int nvmlDeviceGetCount_v2(unsigned *count) {
    read_state();
    *count = driver.count;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    Gpu *gpu;
    *device = handle(index, 0);
    return find(*device, &gpu);
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    read_state();
    for (int gpu = 0; gpu < driver.count; gpu++)
        for (int instance = 0; instance <= driver.instances[gpu]; instance++)
            if (strcmp(driver.gpus[gpu][instance].uuid, uuid) == 0) {
                Gpu *found;
                *device = handle(gpu, instance);
                return find(*device, &found);
            }
    return NOT_FOUND;
}

int nvmlDeviceGetUUID(void *device, char *uuid, unsigned size) {
    Gpu *gpu;
    int status = find(device, &gpu);
    return status ? status : text(gpu->uuid, uuid, size);
}

int nvmlDeviceGetName(void *device, char *name, unsigned size) {
    Gpu *gpu;
    int status = find(device, &gpu);
    return status ? status : text(gpu->name, name, size);
}

#ifndef WITHOUT_MEMORY
int nvmlDeviceGetMemoryInfo_v2(void *device, Memory *memory) {
    Gpu *gpu;
    int status = find(device, &gpu);
    if (status) return status;
    memory->total = gpu->total << 20;
    memory->reserved = 0;
    memory->used = gpu->used << 20;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}
#endif

int nvmlDeviceGetUtilizationRates(void *device, Utilization *rates) {
    Gpu *gpu;
    int status = find(device, &gpu);
    if (status) return status;
    if (strncmp(gpu->uuid, "MIG-", 4) == 0) return NOT_SUPPORTED;
    rates->gpu = gpu->busy;
    rates->memory = 0;
    return SUCCESS;
}

int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *degrees) {
    Gpu *gpu;
    (void)sensor;
    int status = find(device, &gpu);
    if (status) return status;
    if (strncmp(gpu->uuid, "MIG-", 4) == 0) return NOT_SUPPORTED;
    *degrees = gpu->degrees;
    return SUCCESS;
}

int nvmlDeviceGetMigMode(void *device, unsigned *current, unsigned *pending) {
    Gpu *gpu;
    int status = find(device, &gpu);
    if (status) return status;
    *current = *pending = strcmp(gpu->state, "mig") == 0;
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(void *device, unsigned *count) {
    Gpu *gpu;
    *count = INSTANCES;
    return find(device, &gpu);
}

int nvmlDeviceGetMigDeviceHandleByIndex(void *device, unsigned index, void **found) {
    Gpu *gpu;
    int status = find(device, &gpu);
    if (status) return status;
    int parent = ((long)device - 1) / (1 + INSTANCES);
    if ((int)index >= driver.instances[parent]) return NOT_FOUND;
    *found = handle(parent, 1 + index);
    return SUCCESS;
}

int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    Gpu *gpu;
    *major = 9;
    *minor = 0;
    return find(device, &gpu);
}
