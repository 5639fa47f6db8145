/* Intrusive doubly linked lists: the node lies in the object, so that being in a list needs no memory.
 * A head and a node are the same thing; one that is in no list points to itself. */
#ifndef PCCL_NET_LIST_H
#define PCCL_NET_LIST_H

#include <stdbool.h>
#include <stddef.h>

struct list {
    struct list *previous, *next;
};

/* The object of `type` whose `member` is `node`. */
#define LIST_ENTRY(node, type, member) ((type *)(void *)((char *)(node) - offsetof(type, member)))

static inline void list_init(struct list *list) {
    list->previous = list;
    list->next = list;
}

/* Of a head: nothing is in it. Of a node: it is in no list. */
static inline bool list_is_empty(const struct list *list) {
    return list->next == list;
}

static inline void list_append(struct list *head, struct list *node) {
    node->previous = head->previous;
    node->next = head;
    head->previous->next = node;
    head->previous = node;
}

/* Does nothing if it is in no list. */
static inline void list_remove(struct list *node) {
    node->previous->next = node->next;
    node->next->previous = node->previous;
    list_init(node);
}

/* Appends all of `from` to `to`, in order; `from` is empty afterwards. */
static inline void list_append_all(struct list *to, struct list *from) {
    if (!list_is_empty(from)) {
        from->next->previous = to->previous;
        from->previous->next = to;
        to->previous->next = from->next;
        to->previous = from->previous;
        list_init(from);
    }
}

#endif
