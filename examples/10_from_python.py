"""The C door from Python's standard library alone: attention over a ctypes array.

    python3 examples/10_from_python.py libkvcache.so

The shared library: cmake -B build/shared -DBUILD_SHARED_LIBS=ON && cmake --build build/shared
"""

import ctypes
import sys
from ctypes import POINTER, byref, c_char_p, c_float, c_int32, c_int64, c_uint32, c_void_p, sizeof


class Tensor(ctypes.Structure):
    _fields_ = [("struct_size", c_uint32), ("dtype", c_int32), ("rank", c_int32),
                ("data", c_void_p), ("shape", c_int64 * 4), ("strides", c_int64 * 4)]


class Part(ctypes.Structure):
    _fields_ = [("struct_size", c_uint32), ("k_dtype", c_int32), ("v_dtype", c_int32),
                ("page_size", c_int32), ("k", c_void_p), ("v", c_void_p),
                ("k_page_stride", c_int64), ("k_head_stride", c_int64), ("k_token_stride", c_int64),
                ("v_page_stride", c_int64), ("v_head_stride", c_int64), ("v_token_stride", c_int64),
                ("block_table", POINTER(c_int32)), ("block_table_stride", c_int64),
                ("lengths", POINTER(c_int32)), ("first_position", POINTER(c_int32)),
                ("first_visible", POINTER(c_int32)), ("positions", POINTER(c_int32)),
                ("positions_stride", c_int64)]


class ViewDesc(ctypes.Structure):
    _fields_ = [("struct_size", c_uint32), ("num_seqs", c_int32), ("num_kv_heads", c_int32),
                ("k_head_dim", c_int32), ("v_head_dim", c_int32), ("num_parts", c_int32),
                ("parts", POINTER(Part))]


def load(path):
    library = ctypes.CDLL(path)
    for name in ("kvc_version", "kvc_last_message", "kvc_status_name"):
        getattr(library, name).restype = c_char_p
    library.kvc_attend.argtypes = [POINTER(Tensor), POINTER(c_int32), c_void_p, POINTER(Tensor),
                                   POINTER(Tensor), c_void_p, c_void_p]
    library.kvc_view_create.argtypes = [POINTER(ViewDesc), POINTER(c_void_p)]
    library.kvc_view_free.argtypes = [c_void_p]
    library.kvc_view_free.restype = None
    return library


def check(library, status):
    if status != 0:
        name = library.kvc_status_name(status).decode()
        raise ValueError(f"{name}: {library.kvc_last_message().decode()}")


def tensor(data, *shape):
    made = Tensor(struct_size=sizeof(Tensor), rank=len(shape),
                  data=ctypes.cast(data, c_void_p).value)
    made.shape[: len(shape)] = shape
    return made


def main():
    library = load(sys.argv[1])
    heads, tokens, dim = 2, 3, 4
    # K and V [heads, tokens, dim]: token t is t in every element. A zero query weighs all alike.
    rows = (c_float * (heads * tokens * dim))(*[i // dim % tokens for i in range(heads * tokens * dim)])
    query, out = (c_float * (heads * dim))(), (c_float * (heads * dim))()
    length = (c_int32 * 1)(tokens)
    part = Part(struct_size=sizeof(Part), page_size=tokens, lengths=length,
                k=ctypes.addressof(rows), k_head_stride=tokens * dim, k_token_stride=dim,
                v=ctypes.addressof(rows), v_head_stride=tokens * dim, v_token_stride=dim)
    desc = ViewDesc(struct_size=sizeof(ViewDesc), num_seqs=1, num_kv_heads=heads, k_head_dim=dim,
                    v_head_dim=dim, num_parts=1, parts=ctypes.pointer(part))
    view = c_void_p()
    check(library, library.kvc_view_create(byref(desc), byref(view)))
    q, result = tensor(query, 1, heads, dim), tensor(out, 1, heads, dim)
    indptr = (c_int32 * 2)(0, 1)
    check(library, library.kvc_attend(byref(q), indptr, view, byref(result), None, None, None))
    print(f"kvcache {library.kvc_version().decode()}: mean of rows 0, 1, 2: {out[0]:.2f}")

    q.shape[2] = 5  # a mistake comes back as one line
    try:
        check(library, library.kvc_attend(byref(q), indptr, view, byref(result), None, None, None))
    except ValueError as error:
        print(f"refused: {error}")
    library.kvc_view_free(view)


if __name__ == "__main__":
    main()
