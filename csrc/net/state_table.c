#define _GNU_SOURCE
#include "net/state_table.h"

#include <stdlib.h>
#include <string.h>

#include "base/last_error.h"
#include "data/datatype.h"

enum { FREE_CONTENT = 0x80 }; /* beside the datatype, in the digest of keys */

/* ---- the user's tensors ---- */

static pcclResult_t check_tensor(const pcclTensorInfo_t *info, size_t place, const char *call) {
    if (info->name == NULL || info->name[0] == '\0') {
        last_error_set("%s: tensor %zu has no name: tensors are told apart by their names", call, place);
        return pcclInvalidArgument;
    }
    const char *fault = NULL;
    uint32_t element_bytes =
        datatype_valid((int)info->datatype) ? datatype_bytes((uint8_t)info->datatype) : 0;
    if (strnlen(info->name, MAX_TENSOR_NAME_BYTES + 1) > MAX_TENSOR_NAME_BYTES) {
        fault = "has a name of more than 1023 bytes";
    } else if (element_bytes == 0) {
        fault = "has a datatype that does not exist";
    } else if (info->device_type != pcclDeviceCpu) {
        fault = "is not in memory of the CPU: copy it there";
    } else if (info->data == NULL && info->count > 0) {
        fault = "has no memory: its data is NULL";
    } else if (info->count > PTRDIFF_MAX / element_bytes) {
        fault = "has more elements than memory can hold";
    }
    if (fault != NULL) {
        last_error_set("%s: tensor \"%.200s\" %s", call, info->name, fault);
        return pcclInvalidArgument;
    }
    return pcclSuccess;
}

static int compare_names(const void *a, const void *b) {
    return strcmp(((const struct state_tensor *)a)->name, ((const struct state_tensor *)b)->name);
}

static int compare_places(const void *a, const void *b) {
    uintptr_t x = (uintptr_t)(*(const struct state_tensor *const *)a)->data;
    uintptr_t y = (uintptr_t)(*(const struct state_tensor *const *)b)->data;
    if (x != y) {
        return x < y ? -1 : 1;
    }
    /* Of those that begin at one place, in the order of their names. */
    const struct state_tensor *const *first = a, *const *second = b;
    return *first < *second ? -1 : *first > *second;
}

/* They are one piece of memory under two names, as tied weights are. */
static bool are_tied(const struct state_tensor *a, const struct state_tensor *b) {
    return a->data == b->data && a->count == b->count && a->datatype == b->datatype && a->free == b->free;
}

static void tie(struct state_table *table, size_t a, size_t b) {
    size_t first = a < b ? a : b, second = a < b ? b : a;
    size_t root = table->tensors[first].tied;
    table->tensors[second].next_tied = table->tensors[root].next_tied;
    table->tensors[root].next_tied = second;
    table->tensors[second].tied = root;
}

/* Tensors lie apart, or are the same. */
static pcclResult_t check_overlap(struct state_table *table, const char *call) {
    const struct state_tensor **places = malloc(table->tensor_count * sizeof *places);
    if (places == NULL) {
        last_error_set("%s: out of memory", call);
        return pcclOutOfMemory;
    }
    size_t count = 0;
    for (size_t i = 0; i < table->tensor_count; i++) {
        table->tensors[i].tied = table->tensors[i].next_tied = i;
        if (table->tensors[i].bytes > 0) {
            places[count++] = &table->tensors[i];
        }
    }
    qsort(places, count, sizeof *places, compare_places);
    pcclResult_t result = pcclSuccess;
    for (size_t i = 1; i < count && result == pcclSuccess; i++) {
        const struct state_tensor *before = places[i - 1], *tensor = places[i];
        if (are_tied(before, tensor)) {
            tie(table, (size_t)(before - table->tensors), (size_t)(tensor - table->tensors));
        } else if ((uintptr_t)tensor->data - (uintptr_t)before->data < before->bytes) {
            last_error_set(
                "%s: tensors \"%.200s\" and \"%.200s\" share a part of their memory: give each its "
                "own, or list the whole once",
                call, before->name, tensor->name);
            result = pcclInvalidArgument;
        }
    }
    free(places);
    return result;
}

static pcclResult_t check_names(const struct state_table *table, const char *call) {
    for (size_t i = 1; i < table->tensor_count; i++) {
        if (strcmp(table->tensors[i - 1].name, table->tensors[i].name) == 0) {
            last_error_set("%s: two tensors are named \"%.200s\": give each its own name", call,
                           table->tensors[i].name);
            return pcclInvalidArgument;
        }
    }
    return pcclSuccess;
}

static pcclResult_t list_tensors(struct state_table *table, const pcclSharedState_t *state,
                                 const char *call) {
    for (size_t i = 0; i < state->count; i++) {
        const pcclTensorInfo_t *info = &state->infos[i];
        pcclResult_t result = check_tensor(info, i, call);
        if (result != pcclSuccess) {
            return result;
        }
        table->tensors[i] =
            (struct state_tensor){.name = info->name,
                                  .data = info->data,
                                  .count = info->count,
                                  .bytes = info->count * datatype_bytes((uint8_t)info->datatype),
                                  .datatype = (uint8_t)info->datatype,
                                  .free = info->allow_content_inequality};
    }
    table->tensor_count = state->count;
    qsort(table->tensors, table->tensor_count, sizeof *table->tensors, compare_names);
    pcclResult_t result = check_names(table, call);
    return result == pcclSuccess ? check_overlap(table, call) : result;
}

static pcclResult_t count_leaves(struct state_table *table, const char *call) {
    for (size_t i = 0; i < table->tensor_count; i++) {
        struct state_tensor *tensor = &table->tensors[i];
        tensor->first_leaf = table->leaf_count;
        if (!tensor->free && tensor->bytes > 0) {
            tensor->leaf_count = (tensor->bytes - 1) / STATE_LEAF_BYTES + 1;
            table->leaf_count += tensor->leaf_count;
            table->leaf_bytes += tensor->bytes;
        }
    }
    if (table->leaf_count > UINT32_MAX) {
        last_error_set("%s: the state is larger than 4 PiB, which is the limit", call);
        return pcclInvalidArgument;
    }
    table->hashes = calloc(table->leaf_count + 1, sizeof *table->hashes);
    if (table->hashes == NULL) {
        last_error_set("%s: out of memory", call);
        return pcclOutOfMemory;
    }
    return pcclSuccess;
}

pcclResult_t state_table_make(struct state_table *table, const pcclSharedState_t *state, const char *call) {
    *table = (struct state_table){0};
    if (state->count == 0 || state->infos == NULL) {
        last_error_set("%s: the state has no tensors", call);
        return pcclInvalidArgument;
    }
    table->tensors = calloc(state->count, sizeof *table->tensors);
    if (table->tensors == NULL) {
        last_error_set("%s: out of memory", call);
        return pcclOutOfMemory;
    }
    pcclResult_t result = list_tensors(table, state, call);
    if (result == pcclSuccess) {
        result = count_leaves(table, call);
    }
    if (result != pcclSuccess) {
        state_table_free(table);
    }
    return result;
}

void state_table_free(struct state_table *table) {
    free(table->tensors);
    free(table->hashes);
    *table = (struct state_table){0};
}

/* ---- leaves ---- */

static bool has_leaf(const struct state_tensor *tensor, uint64_t leaf) {
    return leaf >= tensor->first_leaf && leaf - tensor->first_leaf < tensor->leaf_count;
}

/* The last tensor whose leaves begin at or before this one, which is its own: those without leaves begin
 * where the next one does. */
static size_t find_tensor(const struct state_table *table, uint64_t leaf) {
    size_t low = 0, high = table->tensor_count;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (table->tensors[middle].first_leaf <= leaf) {
            low = middle;
        } else {
            high = middle;
        }
    }
    while (!has_leaf(&table->tensors[low], leaf)) {
        low--;
    }
    return low;
}

struct state_leaf state_table_leaf(const struct state_table *table, uint64_t leaf, size_t *tensor) {
    if (!has_leaf(&table->tensors[*tensor], leaf)) {
        bool next = *tensor + 1 < table->tensor_count && has_leaf(&table->tensors[*tensor + 1], leaf);
        *tensor = next ? *tensor + 1 : find_tensor(table, leaf);
    }
    const struct state_tensor *owner = &table->tensors[*tensor];
    uint64_t index = leaf - owner->first_leaf, from = index * STATE_LEAF_BYTES;
    uint64_t left = owner->bytes - from;
    return (struct state_leaf){.bytes = owner->data + from,
                               .size = left < STATE_LEAF_BYTES ? (size_t)left : STATE_LEAF_BYTES,
                               .index = index};
}

uint64_t state_table_bytes(const struct state_table *table, uint64_t first, uint64_t count) {
    uint64_t bytes = 0;
    size_t tensor = 0;
    for (uint64_t leaf = first; leaf < first + count; leaf++) {
        bytes += state_table_leaf(table, leaf, &tensor).size;
    }
    return bytes;
}

void state_table_hash_leaf(const struct state_table *table, uint64_t leaf, size_t *tensor,
                           struct state_hash *out) {
    struct state_leaf place = state_table_leaf(table, leaf, tensor);
    state_hash_leaf(place.bytes, place.size, place.index, out);
}

void state_table_rehash(struct state_table *table, uint64_t leaf, size_t *tensor) {
    state_table_hash_leaf(table, leaf, tensor, &table->hashes[leaf]);
    uint64_t index = leaf - table->tensors[*tensor].first_leaf;
    for (size_t i = table->tensors[*tensor].next_tied; i != *tensor; i = table->tensors[i].next_tied) {
        table->hashes[table->tensors[i].first_leaf + index] = table->hashes[leaf];
    }
}

/* ---- digests ---- */

static struct digest digest_of(const struct state_digest *state) {
    struct state_hash hash;
    state_digest_final(state, &hash);
    struct digest digest;
    for (size_t i = 0; i < sizeof digest.bytes; i++) {
        digest.bytes[i] = (uint8_t)(hash.words[i / 8] >> (8 * (i % 8)));
    }
    return digest;
}

struct digest state_table_keys(const struct state_table *table) {
    struct state_digest digest;
    state_digest_init(&digest);
    for (size_t i = 0; i < table->tensor_count; i++) {
        const struct state_tensor *tensor = &table->tensors[i];
        struct state_hash hash;
        uint8_t datatype = (uint8_t)(tensor->datatype | (tensor->free ? FREE_CONTENT : 0));
        state_hash_tensor(datatype, tensor->count, NULL, 0, &hash);
        state_digest_add(&digest, tensor->name, strlen(tensor->name), &hash);
    }
    return digest_of(&digest);
}

struct digest state_table_content(const struct state_table *table, const struct state_hash *hashes) {
    struct state_digest digest;
    state_digest_init(&digest);
    for (size_t i = 0; i < table->tensor_count; i++) {
        const struct state_tensor *tensor = &table->tensors[i];
        if (!tensor->free) {
            struct state_hash hash;
            state_hash_tensor(tensor->datatype, tensor->count, hashes + tensor->first_leaf,
                              tensor->leaf_count, &hash);
            state_digest_add(&digest, tensor->name, strlen(tensor->name), &hash);
        }
    }
    return digest_of(&digest);
}

void state_table_key(const struct state_table *table, size_t tensor, struct state_key *key) {
    const struct state_tensor *from = &table->tensors[tensor];
    memcpy(key->name, from->name, strlen(from->name) + 1);
    key->datatype = from->datatype;
    key->free = from->free;
    key->count = from->count;
}
