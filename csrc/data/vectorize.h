/* For files whose loops must become vector code in every optimised build: GCC does not vectorise loops
 * of unknown length at -O2. It counts for the functions that follow it. */
#ifndef PCCL_DATA_VECTORIZE_H
#define PCCL_DATA_VECTORIZE_H

#if defined(__GNUC__) && !defined(__clang__) && defined(__OPTIMIZE__)
#pragma GCC optimize("O3")
#endif
#if defined(__clang__)
#pragma clang diagnostic ignored "-Wpass-failed" /* at -O0 and -O1 there is no vector code: no harm */
#endif

#endif
