"""One-file potentials: every bit comes back, and nothing damaged or foreign gets in."""

import io
import json
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from ase.build import bulk
from morse import Morse, morse

from jaxmlip.potentials.chgnet import CHGNetModel
from jaxmlip.potentials.equivariant import Equivariant
from jaxmlip.potentials.evaluation import compiled_evaluate, label, predict
from jaxmlip.potentials.files import ARRAYS, HEADER, PotentialFileError, load, load_potential, read_header, save
from jaxmlip.potentials.kinds import KINDS, Kind
from jaxmlip.potentials.potential import LABELS, Potential, Sum, stack
from jaxmlip.potentials.upgrades import VERSION

SMALL = Equivariant(channels=4, l_max=1, correlation=1, cutoff=3.7, radial_functions=3, radial_mlp=(5,))
NATURAL = -2043.933 / 3


def student(seed: int = 0) -> Potential:
    references = np.zeros(119)
    references[[1, 29]] = -13.587, NATURAL
    return SMALL.build(
        [29, 1], average_neighbors=11.3 / 7, references=references, scale=0.1 + seed, shift=-1 / 3, seed=seed
    )


def perturbed(potential: Potential, seed: int) -> Potential:
    """The potential with other parameters, cheaper than building another."""
    rng = np.random.default_rng(seed)
    noise = lambda leaf: np.asarray(leaf + 0.1 * rng.normal(size=leaf.shape), leaf.dtype)  # noqa: E731
    return potential.replace(params=jax.tree.map(noise, potential.params))


@pytest.fixture(scope="module")
def small() -> Potential:
    return student()


@pytest.fixture
def morse_kind(monkeypatch):
    """The tests' own potential as a kind, the way a new class gets its entry."""
    encode = lambda potential: ({"known": list(potential.known)}, {"params": potential.params})  # noqa: E731
    decode = lambda cls, static, leaves, references: cls(leaves["params"], references, tuple(static["known"]))  # noqa: E731
    monkeypatch.setitem(KINDS, "morse", Kind(f"{Morse.__module__}:Morse", encode, decode))


def assert_identical(one, other) -> None:
    """Equal classes, statics, tree, types and bits."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for mine, yours in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        mine, yours = np.asarray(mine), np.asarray(yours)
        assert mine.dtype == yours.dtype
        assert mine.tobytes() == yours.tobytes()
    assert one.references.dtype == other.references.dtype == np.float64
    assert one.references.tobytes() == other.references.tobytes()


def compilations() -> int:
    return compiled_evaluate._cache_size()  # pyright: ignore[reportAttributeAccessIssue]


def contents(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    with zipfile.ZipFile(path) as archive:
        header = json.loads(archive.read(HEADER))
        with np.load(io.BytesIO(archive.read(ARRAYS))) as arrays:
            return header, dict(arrays)


def rewrite(path: Path, header: dict, arrays: dict) -> None:
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(HEADER, json.dumps(header))
        archive.writestr(ARRAYS, packed.getvalue())


class TestRoundTrip:
    def test_student(self, small, tmp_path):
        save(
            small, tmp_path / "a.jaxmlip", provenance={"seed": 3, "config": {"width": np.float32(0.5), "of": tmp_path}}
        )
        again = load(tmp_path / "a.jaxmlip")
        assert_identical(small, again)
        header = read_header(str(tmp_path / "a.jaxmlip"))
        assert header["potential"]["references"] == {"H": -13.587, "Cu": NATURAL}
        assert header["potential"]["static"]["specification"]["cutoff"] == 3.7
        assert (header["potential"]["kind"], header["dtype"], header["version"]) == ("equivariant", "float32", VERSION)
        assert header["provenance"]["seed"] == 3
        assert header["provenance"]["config"] == {"width": 0.5, "of": str(tmp_path)}
        assert header["provenance"]["versions"]["jax"] == jax.__version__
        assert list(tmp_path.iterdir()) == [tmp_path / "a.jaxmlip"]

    def test_what_it_was_trained_on(self, small, tmp_path):
        """Kept with the potential, also in sums; unknown of files that do not say; no part of what is compiled."""
        path = tmp_path / "a.jaxmlip"
        seen = small.having_seen(("forces", "energy"))
        for potential, labels in ((small, ()), (seen, ("energy", "forces")), (seen + small, ("energy", "forces"))):
            save(potential, path)
            assert load_potential(path).trained_on == labels
        save(seen, path)
        header, arrays = contents(path)
        del header["potential"]["static"]["trained_on"]
        rewrite(path, header, arrays)
        with pytest.raises(PotentialFileError, match="'trained_on' is missing"):
            load_potential(path)
        rewrite(path, header | {"version": 1}, arrays)
        assert load_potential(path).trained_on is None
        assert load_potential("chgnet:gga").trained_on == LABELS
        header["potential"]["static"]["trained_on"] = ["charge"]
        rewrite(path, header, arrays)
        with pytest.raises(PotentialFileError, match="trained on energy, forces, stress, magmoms, not on"):
            load(path)

        structures = [bulk("Cu", cubic=True)]
        predict(small, structures)
        compiled = compilations()
        predict(seen, structures)
        assert compilations() == compiled
        assert stack([small, seen]).params["embedding"].shape[0] == 2

    def test_a_loaded_potential_needs_no_compilation(self, small, tmp_path):
        structures = [bulk("Cu", cubic=True)]
        (before,) = predict(small, structures)
        compiled = compilations()
        save(small, tmp_path / "a.jaxmlip")
        (after,) = label(structures, load(tmp_path / "a.jaxmlip"))
        assert compilations() == compiled
        assert before.energy == after.energy
        np.testing.assert_array_equal(before.forces, after.forces)

    def test_double_precision_and_several_heads(self, small, tmp_path, x64):
        double = small.with_heads(3).replace(scale=np.array([1.0, 1 / 3, 0.7]))
        double = double.replace(params=jax.tree.map(lambda leaf: np.asarray(leaf, np.float64) / 3, double.params))
        save(double, tmp_path / "a.jaxmlip")
        assert_identical(double, load(tmp_path / "a.jaxmlip"))
        assert read_header(tmp_path / "a.jaxmlip")["dtype"] == "float64"

    def test_sums_nested(self, small, morse_kind, tmp_path):
        total = (small + perturbed(small, 1)) + morse()
        save(total, tmp_path / "a.jaxmlip")
        again = load(tmp_path / "a.jaxmlip")
        assert isinstance(again, Sum)
        assert isinstance(again.terms[0], Sum)
        assert_identical(total, again)

    def test_chgnet(self, tmp_path):
        chgnet = load("chgnet:r2scan")
        assert isinstance(chgnet, Potential)
        save(chgnet, tmp_path / "a.jaxmlip")
        assert_identical(chgnet, load(tmp_path / "a.jaxmlip"))
        several = CHGNetModel().build([8, 26], seed=2).with_heads(2).having_seen(["energy"])
        save(several, tmp_path / "b.jaxmlip")
        back = load(tmp_path / "b.jaxmlip")
        assert_identical(several, back)
        assert (back.species, back.trained_on) == ((8, 26), ("energy",))
        header, arrays = contents(tmp_path / "a.jaxmlip")
        header["potential"]["static"] = {}  # as in files of version 2
        rewrite(tmp_path / "old.jaxmlip", header | {"version": 2}, arrays)
        assert_identical(chgnet, load(tmp_path / "old.jaxmlip"))

    def test_equal_potentials_make_equal_files(self, small, tmp_path):
        for name in ("a", "b"):
            save(small, tmp_path / f"{name}.jaxmlip")
        assert (tmp_path / "a.jaxmlip").read_bytes() == (tmp_path / "b.jaxmlip").read_bytes()

    def test_writing_replaces_at_once_or_not_at_all(self, small, tmp_path, monkeypatch):
        path = tmp_path / "a.jaxmlip"
        save(small, path)
        other = perturbed(small, 2)
        with monkeypatch.context() as patch:
            patch.setattr("jaxmlip.files.os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                save(other, path)
        assert_identical(small, load(path))
        assert list(tmp_path.iterdir()) == [path]
        save(other, path)
        assert_identical(other, load(path))


class TestNames:
    @pytest.mark.parametrize("name", ["chgnet:pbe", "mace", "chgnet"])
    def test_unknown_names_list_the_known(self, name):
        with pytest.raises(ValueError, match=f"no potential '{name}'; the names are chgnet:gga, chgnet:r2scan, ase:"):
            load(name)

    def test_missing_files(self, tmp_path, small):
        for path in (tmp_path / "gone.jaxmlip", "gone.jaxmlip", tmp_path / "sub" / "gone"):
            with pytest.raises(FileNotFoundError, match=r"There is no potential file .*gone"):
                load(path)
        with pytest.raises(FileNotFoundError, match="no potential file"):
            read_header(tmp_path / "gone.jaxmlip")
        with pytest.raises(ValueError, match=r"is a folder; give the path of a \.jaxmlip file"):
            load(tmp_path)
        with pytest.raises(FileNotFoundError, match=r"Cannot write .*a\.jaxmlip: there is no folder .*sub"):
            save(small, tmp_path / "sub" / "a.jaxmlip")


class TestRefusals:
    @pytest.fixture
    def path(self, small, tmp_path) -> Path:
        save(small, tmp_path / "a.jaxmlip")
        return tmp_path / "a.jaxmlip"

    def refused(self, path: Path, reason: str) -> None:
        with pytest.raises(PotentialFileError, match=rf"^{path} is not a usable potential file: .*{reason}") as caught:
            load(path)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("fraction", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
    def test_truncated(self, path, fraction):
        content = path.read_bytes()
        path.write_bytes(content[: int(fraction * len(content))])
        self.refused(path, "truncated or damaged.*copy it again" if fraction else "no zip archive")

    def test_no_flipped_byte_goes_unnoticed(self, path, small):
        """A damaged byte is refused, unless it is in a field that carries no content (a date, an attribute)."""
        content = path.read_bytes()
        rng = np.random.default_rng(0)
        end = len(content) - 300  # the archive's directory
        unnoticed = 0
        for place in [*rng.integers(0, end, size=40), *rng.integers(end, len(content), size=40)]:
            damaged = bytearray(content)
            damaged[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            try:
                again = load(path)
            except PotentialFileError:
                continue
            assert_identical(small, again)
            unnoticed += 1
        assert unnoticed < 40

    def test_foreign(self, path):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("document.xml", "<p/>")
        self.refused(path, "the archive lacks arrays.npz and potential.json, so jaxmlip has not written it")
        path.write_text("not an archive")
        self.refused(path, "it is no zip archive, so not written by jaxmlip")

    def test_header(self, path):
        header, arrays = contents(path)
        for version in (VERSION + 1, 0, "1", None, True):
            rewrite(path, header | {"version": version}, arrays)
            self.refused(
                path, rf"it has version {version!r} of the format \(jaxmlip 0.* wrote it\), and this jaxmlip reads"
            )
            with pytest.raises(PotentialFileError, match=f"version {version!r}"):
                read_header(path)
        rewrite(path, header | {"format": "a picture"}, arrays)
        self.refused(path, "not that of a jaxmlip potential")
        rewrite(path, header | {"potential": header["potential"] | {"kind": "oracle"}}, arrays)
        kinds = ", ".join(["sum", *KINDS])
        self.refused(path, f"it is of the kind 'oracle', but what is registered is {kinds}; import jaxmlip.potentials")
        rewrite(path, {key: value for key, value in header.items() if key != "potential"}, arrays)
        self.refused(path, "'potential' is missing")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(HEADER, "{")
            archive.writestr(ARRAYS, b"")
        self.refused(path, "")

    def test_configuration(self, path):
        header, arrays = contents(path)
        static = header["potential"]["static"]
        for change, reason in (
            ({"specification": static["specification"] | {"channels": 5}}, "shape"),
            ({"specification": static["specification"] | {"no_such": 5}}, "no_such"),
            ({"heads": 2}, r"scale has shape \(1,\) instead of \(2,\)"),
            ({"known": [1, 8, 29]}, "shape"),
        ):
            rewrite(path, header | {"potential": header["potential"] | {"static": static | change}}, arrays)
            self.refused(path, reason)

    def test_arrays(self, path):
        header, arrays = contents(path)
        key = next(name for name in arrays if name.startswith("params/") and arrays[name].ndim == 2)
        rewrite(path, header, {name: array for name, array in arrays.items() if name != key})
        self.refused(path, f"the array {key} is missing")
        rewrite(path, header, arrays | {key: arrays[key][:-1]})
        self.refused(path, f"the array {key} is float32 of shape .* instead of float32 of shape")
        rewrite(path, header, arrays | {key: arrays[key].astype(np.float64)})
        self.refused(path, f"the array {key} is float64 of shape .* instead of float32")
        rewrite(path, header, arrays | {key: np.full_like(arrays[key], np.nan)})
        self.refused(path, f"values of {key} are NaN or infinite")
        rewrite(path, header, arrays | {key: np.array([{}], dtype=object)})
        self.refused(path, "allow_pickle=False")

    def test_nothing_unfit_is_written(self, small, tmp_path):
        path = tmp_path / "a.jaxmlip"
        unfit = {
            "NaN or infinite; the training has diverged": small.replace(scale=np.array([np.nan])),
            "values of references are NaN": small.replace(references=np.full(119, np.inf)),
            "references has shape": small.replace(references=np.zeros(5)),
            f"no file format for morse:Morse; the kinds are {', '.join(['sum', *KINDS])}": morse(),
            "save takes one potential, and this is a stack of several: save its members one by one": stack([small] * 2),
        }
        for reason, potential in unfit.items():
            with pytest.raises(PotentialFileError, match=rf"^{path} cannot be written: .*{reason}"):
                save(potential, path)
        with pytest.raises(PotentialFileError, match="the provenance holds a set, which JSON has no form for"):
            save(small, path, provenance={"of": {1, 2}})
        with pytest.raises(PotentialFileError, match="cannot be written"):
            save(small, path, provenance={"loss": float("nan")})
        assert not list(tmp_path.iterdir())


class TestPrecision:
    def test_float64(self, small, tmp_path, x64):
        """Casts parameters, of sums too, but not references; energies then carry the digits of double precision."""
        save(small + small, tmp_path / "a.jaxmlip")
        stored, double, single = (load(tmp_path / "a.jaxmlip", dtype=dtype) for dtype in (None, "float64", np.float32))
        assert isinstance(double, Sum)
        assert isinstance(single, Sum)
        for leaf, wide, narrow in zip(*map(jax.tree.leaves, (stored, double, single)), strict=True):
            assert wide.dtype == np.float64
            assert narrow.dtype == (np.float64 if leaf.shape == (119,) else np.float32)
            np.testing.assert_array_equal(leaf, wide)
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.1, seed=1)
        (rounded,), (exact,) = predict(single.terms[0], [atoms]), predict(double.terms[0], [atoms])
        assert np.abs(exact.forces.sum(0)).max() < 1e-12 < np.abs(rounded.forces.sum(0)).max()
        np.testing.assert_allclose(rounded.forces, exact.forces, atol=1e-5)

    def test_chgnet(self, x64):
        double = load("chgnet:gga", dtype=np.float64)
        assert {leaf.dtype for leaf in jax.tree.leaves(double.params)} == {np.dtype(np.float64)}

    def test_refusals(self, small, tmp_path):
        save(small, tmp_path / "a.jaxmlip")
        with pytest.raises(ValueError, match=r"float64 needs JAX to allow it.*jax_enable_x64"):
            load(tmp_path / "a.jaxmlip", dtype="float64")
        for wrong in ("double-double", np.int32, np.float16):
            with pytest.raises(ValueError, match=r'dtype of a potential is "float32" or "float64", not'):
                load(tmp_path / "a.jaxmlip", dtype=wrong)
