"""Who may make a call now. `Admitted` is a principal that has the scope; rate limits and budgets will ask here too."""

from typing import Annotated

from fastapi import Depends

from auth.dependencies import requires
from auth.principal import Principal
from auth.scopes import Scope

Admitted = Annotated[Principal, Depends(requires(Scope.LLM))]
