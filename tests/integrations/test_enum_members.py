"""Members added to a string enum must be indistinguishable from those of the class body, in every Python.

unittest and the standard library only: `test_other_pythons.py` runs this file under every Python it finds.
"""

import copy
import json
import pickle
import unittest
from enum import Enum

from gradscale.integrations.enum_members import add_member


class Explicit(str, Enum):  # as transformers' ExplicitEnum  # noqa: UP042
    @classmethod
    def _missing_(cls, value):
        raise ValueError(f"{value} is not a valid {cls.__name__}: {list(cls._value2member_map_)}")


class Names(Explicit):
    ADAMW = "adamw"
    SGD = "sgd"


ADDED = add_member(Names, "SGG_ADAMW", "sgg_adamw")


class EnumMembersTest(unittest.TestCase):
    def test_lookup(self):
        self.assertIs(Names("sgg_adamw"), ADDED)
        self.assertIs(Names["SGG_ADAMW"], ADDED)
        self.assertIs(Names.SGG_ADAMW, ADDED)
        self.assertIs(Names(ADDED), ADDED)

    def test_is_a_member_and_a_string(self):
        self.assertEqual((ADDED.name, ADDED.value), ("SGG_ADAMW", "sgg_adamw"))
        self.assertIsInstance(ADDED, Names)
        self.assertEqual(ADDED, "sgg_adamw")
        self.assertEqual(hash(ADDED), hash(Names("sgg_adamw")))
        self.assertEqual(repr(ADDED), "<Names.SGG_ADAMW: 'sgg_adamw'>")
        self.assertEqual(str(ADDED), str(Names.SGD).replace("SGD", "SGG_ADAMW"))

    def test_iteration_and_containment(self):
        self.assertEqual([member.value for member in Names], ["adamw", "sgd", "sgg_adamw"])
        self.assertEqual(len(Names), 3)
        self.assertIn(ADDED, Names)
        self.assertIn("SGG_ADAMW", Names.__members__)
        self.assertIn("SGG_ADAMW", dir(Names))
        self.assertEqual(list(reversed(Names))[0], ADDED)

    def test_pickle_copy_json(self):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            self.assertIs(pickle.loads(pickle.dumps(ADDED, protocol)), ADDED)
        self.assertIs(copy.copy(ADDED), ADDED)
        self.assertIs(copy.deepcopy({"optim": ADDED})["optim"], ADDED)
        self.assertEqual(json.dumps({"optim": ADDED}), '{"optim": "sgg_adamw"}')

    def test_again_changes_nothing(self):
        self.assertIs(add_member(Names, "SGG_ADAMW", "sgg_adamw"), ADDED)
        self.assertIs(add_member(Names, "OTHER", "sgd"), Names.SGD)
        self.assertEqual(len(Names), 3)
        self.assertNotIn("OTHER", Names.__members__)

    def test_a_taken_name_is_refused(self):
        for name in ("SGD", "_missing_"):
            with self.assertRaisesRegex(ValueError, name):
                add_member(Names, name, "new_value")
        self.assertEqual(len(Names), 3)

    def test_only_string_enums(self):
        with self.assertRaises(TypeError):
            add_member(Enum("Plain", "A B"), "C", "c")
        with self.assertRaises(TypeError):
            add_member(str, "C", "c")

    def test_members_stay_guarded(self):
        with self.assertRaises(AttributeError):
            Names.SGG_ADAMW = "other"

    def test_missing_still_asks_the_class(self):
        with self.assertRaisesRegex(ValueError, "sgg_adamx is not a valid Names.*sgg_adamw"):
            Names("sgg_adamx")


if __name__ == "__main__":
    unittest.main()
