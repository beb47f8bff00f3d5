"""The class of config sections: frozen keys, each documented by the text under it."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen group of keys that rejects unknown keys. The text under a key is its documentation."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        str_strip_whitespace=False,
    )
