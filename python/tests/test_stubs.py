"""The stubs of the extension module: all of it is there, and no type says less than is known."""

import ast
import pathlib

import numpy
import pytest

import kvcache
import kvcache.typing
from kvcache import BatchingCache, CacheConfig, DynamicKVCache, PagedCache

FOLDER = pathlib.Path(kvcache._core.__file__).parent / "_core"
MODULES = {"__init__": kvcache._core, "functional": kvcache._core.functional,
           "hf": kvcache._core.hf}
TREES = {name: ast.parse((FOLDER / f"{name}.pyi").read_text(encoding="utf-8")) for name in MODULES}

VAGUE = {"Any", "object", "Incomplete"}
REASONS = {
    "LayerSpec.__eq__(other)": "anything may be compared, as the base class object has it",
    "KVCache.__deepcopy__(memo)": "copy.deepcopy keeps there what it wants to",
    "CacheState.__deepcopy__(memo)": "copy.deepcopy keeps there what it wants to",
    "hf.digest(buffer)": "anything that has the buffer protocol",
    "hf.PagedLayer.update(config)": "a config of transformers, which the stubs do not know, or None",
    "hf.attention_interface(recorder)": "an object of transformers, which the stubs do not know",
    "hf.attention_interface(calls)": "a ContextVar, which nanobind has no type for",
}

# Results that are arrays of whatever library the last array came from, in another call.
OF_THE_LAST_LIBRARY = {"KVCache.get", "FullCache.key_values", "LayerHandle.key_values",
                       "PagedBatch.gather", "PagedCache.gather", "functional.get",
                       "hf.PagedLayer.gather"}
# Overloads for an `lse` of which nothing is known but that it is True or False.
OF_ANY_LSE = {"attend", "AttentionPlan.run"}


def functions(tree, prefix=""):
    """(name, definition) of every function, methods as Class.name."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield from functions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef):
            yield prefix + node.name, node


def all_functions():
    for module, tree in TREES.items():
        yield from functions(tree, "" if module == "__init__" else f"{module}.")


def annotations():
    """(name, annotation) of every parameter and result; the annotation is None where there is none."""
    for name, function in all_functions():
        given = function.args
        for argument in given.posonlyargs + given.args + given.kwonlyargs:
            if argument.arg != "self":
                yield f"{name}({argument.arg})", argument.annotation
        yield name, function.returns


def names_in(annotation):
    """Every name in an annotation: `a.b.C` is `C`."""
    return {node.attr if isinstance(node, ast.Attribute) else node.id
            for node in ast.walk(annotation) if isinstance(node, (ast.Name, ast.Attribute))}


def test_every_parameter_and_result_has_a_type():
    assert [name for name, annotation in annotations() if annotation is None] == []


def test_no_type_is_any_or_object_without_a_reason():
    vague = {name for name, annotation in annotations() if VAGUE & names_in(annotation)}
    assert vague == set(REASONS)


def test_arrays_of_an_unknown_library_come_only_from_calls_that_take_none():
    found = {name for name, annotation in annotations() if "AnyArray" in names_in(annotation)}
    assert found == OF_THE_LAST_LIBRARY | OF_ANY_LSE


def test_no_container_is_without_its_elements():
    for name, annotation in annotations():
        inside = {id(node.value) for node in ast.walk(annotation) if isinstance(node, ast.Subscript)}
        for node in ast.walk(annotation):
            if isinstance(node, ast.Name) and node.id in ("dict", "list", "tuple", "Sequence", "Iterable"):
                assert id(node) in inside, f"{name}: found {ast.unparse(annotation)}"


def test_types_of_the_package_exist():
    for name, annotation in annotations():
        for node in ast.walk(annotation):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "kvcache.typing":
                assert hasattr(kvcache.typing, node.attr), f"{name}: found {ast.unparse(node)}"


@pytest.mark.parametrize("name", MODULES)
def test_a_stub_names_what_its_module_holds(name):
    module, tree = MODULES[name], TREES[name]
    stubbed = {node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    present = {one for one in vars(module) if not one.startswith("_")}
    aliases = {"BatchingKvCache", "TinyKvFullCache"} if name == "__init__" else set()
    modules = {"functional", "hf"} if name == "__init__" else set()
    assert stubbed == present - aliases - modules
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            members = {one.name for one in node.body if isinstance(one, ast.FunctionDef)}
            assert members <= set(dir(getattr(module, node.name)))


def test_plan_takes_the_options_that_a_plan_takes():
    plan = dict(all_functions())["AttentionPlan.plan"]
    own = {argument.arg for argument in plan.args.kwonlyargs} - {"num_heads"}
    assert set(kvcache.typing.PlanOptions.__annotations__) == own


def stats_of_each():
    rows = numpy.ones((1, 2, 3, 4), numpy.float32)
    cache, plan = DynamicKVCache(), kvcache.AttentionPlan()
    cache.update(rows, rows)
    plan.plan(cache, [0, 3], num_heads=2)
    info = kvcache.info()
    return {"CacheStats": cache.stats(), "BatchingStats": BatchingCache(1).stats(),
            "PagedStats": PagedCache(CacheConfig.uniform(1, 1, 4, num_pages=1)).stats(),
            "PlanStats": plan.stats(), "Info": info, "BackendInfo": info["backends"][0]}


def test_dictionaries_have_the_keys_and_types_they_are_said_to_have():
    for name, found in stats_of_each().items():
        said = getattr(kvcache.typing, name).__annotations__
        assert set(found) == set(said), name
        for key, value in found.items():
            type_said = said[key].__forward_arg__
            if type_said in ("str", "int", "bool"):
                assert type(value).__name__ == type_said, f"{name}[{key!r}]"
            elif type_said.startswith("Literal"):
                assert repr(value) in type_said, f"{name}[{key!r}]"


def test_equal_specs_are_one_key():
    one, same, other = (kvcache.LayerSpec(2, 4), kvcache.LayerSpec(2, 4),
                        kvcache.LayerSpec(2, 4, v_dtype="float16"))
    assert one == same and one != other and one != 3
    assert {one: 1}[same] == 1 and other not in {one: 1}
