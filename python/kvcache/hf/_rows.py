"""The rows of a paged layer as a tensor: whole in shape and dtype, without memory of its own."""

import functools

import torch


class PagedRows(torch.Tensor):
    """The keys, or the values, of a paged layer as they are now: a tensor [B, H, S, D] whose rows stay
    in their pages. Our attention reads them there; any other operation gathers a copy first. What
    would be a view, too, is of a copy. None of them can be written to.

    Errors: RuntimeError for writing in place and for asking where the memory is, and once the layer's
    rows have moved on (`crop`, `reorder_cache`, `reset` and the like); rows appended later do not show.

    kv_source: (rows of the layer, length, epoch), or (dense tensor,) of a view. kv_index: keys (0),
    values (1), a view (2).
    """

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, index, shape, dtype, strides=None, offset=None):
        """Of no layer until `kv_source` is set."""
        rows = torch.Tensor._make_wrapper_subclass(cls, shape, strides, offset, dtype=dtype)
        # Whatever takes its address all the same is told that there is none.
        torch._C._set_throw_on_mutable_data_ptr(rows)
        rows.kv_index = index
        return rows

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        schema = func._schema
        if schema.is_mutable:
            refuse_writes(schema, args, kwargs)
        args, kwargs = torch.utils._pytree.tree_map_only(cls, dense, (args, kwargs))
        result = func(*args, **kwargs)
        if any(given.alias_info is not None and not given.alias_info.is_write
               for given in schema.returns):
            result = torch.utils._pytree.tree_map_only(torch.Tensor, view_of, result)
        return result

    data = property(torch.Tensor.data.__get__,
                    lambda self, value: raise_no_memory("data"),
                    doc="The rows, as a view.")

    def numpy(self, *, force=False):
        """A read-only array of a copy."""
        return read_only(dense(self).numpy(force=force))

    def __array__(self, *args, **kwargs):
        return read_only(dense(self).__array__(*args, **kwargs))

    def __repr__(self, **kwargs):
        return f"PagedRows(shape={tuple(self.shape)}, dtype={self.dtype})"

    def __deepcopy__(self, memo):
        return dense(self).clone()


def dense(rows):
    """The rows as a plain tensor: a copy of those of a layer. Any other tensor is given back."""
    if type(rows) is not PagedRows:
        return rows
    if rows.kv_index == 2:
        return rows.kv_source[0]
    layer, length, epoch = rows.kv_source
    return layer.gather(epoch, length)[rows.kv_index][:, :, :length]


def view_of(tensor):
    """A tensor of a copy, as what cannot be written to."""
    if type(tensor) is not torch.Tensor:
        return tensor
    rows = PagedRows(2, tensor.shape, tensor.dtype, tensor.stride(), tensor.storage_offset())
    rows.kv_source = (tensor,)
    return rows


def read_only(array):
    array.flags.writeable = False
    return array


def raise_no_memory(name):
    raise RuntimeError(f"{name}: found rows of a paged cache, which have no memory of their own and "
                       "cannot be written to, expected a plain tensor: rows.clone() makes one, and "
                       "layer.keys = x, layer.values = x replace the rows of a layer")


def refuse_writes(schema, args, kwargs):
    """RuntimeError if an operation would write to rows."""
    given = [*zip(schema.arguments, args),
             *((argument, kwargs.get(argument.name)) for argument in schema.arguments[len(args):])]
    for argument, value in given:
        if argument.alias_info is not None and argument.alias_info.is_write and any(
                type(leaf) is PagedRows for leaf in torch.utils._pytree.tree_leaves(value)):
            raise_no_memory(schema.name.removeprefix("aten::"))


def gathering(name):
    """The method of that name, over a copy."""
    method = getattr(torch.Tensor, name)

    @functools.wraps(method)
    def call(self, *args, **kwargs):
        return method(dense(self), *args, **kwargs)

    return call


def refusing(name):
    @functools.wraps(getattr(torch.Tensor, name))
    def call(self, *args, **kwargs):
        raise_no_memory(name)

    return call


# Methods of torch.Tensor that reach for memory without an operation that could be seen above.
for _name in ("tolist", "__dlpack__", "__format__", "__reduce_ex__"):
    if hasattr(torch.Tensor, _name):
        setattr(PagedRows, _name, gathering(_name))
for _name in ("apply_", "const_data_ptr", "data_ptr", "is_set_to", "map2_", "map_", "mutable_data_ptr",
              "share_memory_", "storage", "untyped_storage", "_typed_storage"):
    if hasattr(torch.Tensor, _name):
        setattr(PagedRows, _name, refusing(_name))
