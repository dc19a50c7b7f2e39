"""GET /v1/models: what this service offers, in OpenAI's shape."""

from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel

from service.api.chat import find_model
from service.limits.admission import Admitted
from service.llm.catalog import Model
from service.openapi import errors
from service.state import Llm

router = APIRouter(prefix="/v1", tags=["llm"])


class ModelObject(BaseModel):
    """A model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(BaseModel):
    """What the caller may use. Empty where any name is passed on to one upstream, which alone knows what it has."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


def _shape(model: Model) -> ModelObject:
    return ModelObject(id=model.name, created=model.created, owned_by=model.owned_by)


@router.get("/models", responses=errors(401, 403))
async def list_models(request: Request, principal: Admitted) -> ModelList:
    """The models of the catalog that the caller may use."""
    llm: Llm = request.state.llm
    return ModelList(data=[_shape(model) for model in llm.catalog.models if principal.may_call(model.name)])


@router.get("/models/{model_id:path}", responses=errors(401, 403, 404, 422))
async def get_model(request: Request, model_id: str, principal: Admitted) -> ModelObject:
    """One model. Its name may hold slashes."""
    llm: Llm = request.state.llm
    return _shape(find_model(llm.catalog, model_id, principal))
