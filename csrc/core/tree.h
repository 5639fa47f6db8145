/* The tree: recursive doubling over a hypercube, for payloads so small that the number of hops counts and not
 * that of bytes.
 *
 * Each of the n peers has a place. The first m = 2^k of them, the largest power of two within n, are the
 * corners of a cube: along dimension i, p and p xor 2^i are neighbours. The n - m places beyond are folded
 * onto the first ones: p and p + m are neighbours too. Steps: 0 folds in, i + 1 goes along dimension i, k + 1
 * folds out. all-reduce: in step 0 the places beyond give their vector to their neighbour; then all corners
 * exchange what they have so far, along one dimension after the other; in the end the places beyond get the
 * result. k hops, 2 more unless n is a power of two; k (or k + 1, with the fold) times the vector each way.
 *   broadcast: from the root's corner along the dimensions (a binomial tree): as many hops; each gets the
 * vector once.
 *
 * Both sides of an exchange compute the same sum: operands in the order of places, with kernels that give the
 * same bits on every processor (data/reduce.h). So all peers end with the same bits, though no single one has
 * finished them. A tree that reduces to one root and broadcasts back would have one peer finish them, in
 * twice the hops.
 *
 * Places are not ring ranks: when a peer leaves, the one in the last place takes over its place, so that only
 * that one needs new links. */
#ifndef PCCL_CORE_TREE_H
#define PCCL_CORE_TREE_H

#include "core/schedule.h"

enum { NO_PLACE = 0xffff };

/* Who is at the other end of an edge of the tree, or NO_PLACE. */
uint16_t tree_partner(uint16_t world, uint16_t place, enum edge edge);

uint32_t tree_steps(const struct schedule *schedule);
uint32_t tree_levels(const struct schedule *schedule);
struct step tree_step(const struct schedule *schedule, uint32_t step);

#endif
