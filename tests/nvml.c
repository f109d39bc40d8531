/* Stands where NVIDIA's driver library stands: the few functions that dpiped calls, with numbers from a file.

The file that FAKE_NVML names is read at every look. Its first line is what the driver does: `ok`, `hang` (until
it is something else), or `fail CODE` with one of NVML's error codes. Then a line per GPU: CODE USED TOTAL
UTILIZATION NAME, where CODE is the error that the GPU itself gives (0: none), and USED or UTILIZATION below 0
stands for "not supported". The file FAKE_NVML.asked gets an `i` for each opening of the library and a `c` for each
time that the GPUs are counted. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, NOT_SUPPORTED = 3, MOST = 8, HANG = -1000 };

struct gpu {
    int code, utilization;
    long long used, total;
    char name[96];
};
struct memory { unsigned long long total, free, used; };
struct utilization { unsigned int gpu, memory; };

static struct gpu gpus[MOST];
static int is_open;

static void note(char letter)
{
    char path[4096];
    snprintf(path, sizeof path, "%s.asked", getenv("FAKE_NVML"));
    FILE *file = fopen(path, "a");
    if (!file)
        abort();
    fputc(letter, file);
    fclose(file);
}

/* Reads the file. How many GPUs there are, or minus the error; HANG for a driver that hangs. */
static int read_file(void)
{
    char line[256];
    int code = 0, count = 0;
    FILE *file = fopen(getenv("FAKE_NVML"), "r");
    if (!file || !fgets(line, sizeof line, file))
        abort();
    if (!strncmp(line, "hang", 4))
        count = HANG;
    else if (sscanf(line, "fail %d", &code) == 1)
        count = -code;
    else
        while (count < MOST && fgets(line, sizeof line, file)) {
            struct gpu *each = &gpus[count++];
            if (sscanf(line, "%d %lld %lld %d %95[^\n]", &each->code, &each->used, &each->total,
                       &each->utilization, each->name) != 5)
                abort();
        }
    fclose(file);
    return count;
}

static int look(char letter)
{
    int found = read_file();
    /* Only now: who waits for it may change the file at once. */
    note(letter);
    while (found == HANG) {
        usleep(20000);
        found = read_file();
    }
    return found;
}

int nvmlInitWithFlags(unsigned int flags)
{
    (void)flags;
    int count = look('i');
    is_open = count >= 0;
    return is_open ? SUCCESS : -count;
}

int nvmlShutdown(void)
{
    is_open = 0;
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned int *count)
{
    int found = look('c');
    if (!is_open)
        return UNINITIALIZED;
    if (found < 0)
        return -found;
    *count = found;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, struct gpu **handle)
{
    *handle = &gpus[index];
    return gpus[index].code;
}

int nvmlDeviceGetName(struct gpu *gpu, char *name, unsigned int length)
{
    snprintf(name, length, "%s", gpu->name);
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(struct gpu *gpu, struct memory *memory)
{
    if (gpu->used < 0)
        return NOT_SUPPORTED;
    *memory = (struct memory){gpu->total, gpu->total - gpu->used, gpu->used};
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(struct gpu *gpu, struct utilization *rates)
{
    if (gpu->utilization < 0)
        return NOT_SUPPORTED;
    *rates = (struct utilization){gpu->utilization, 0};
    return SUCCESS;
}

const char *nvmlErrorString(int code)
{
    (void)code;
    return "an error";
}
