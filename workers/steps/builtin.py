# STANDIN
import marshmallow as ma
from orchestrator.plugins import hookimpl
from workers.steps.contract import StepType, Done
class Any_(ma.Schema):
    class Meta: unknown=ma.INCLUDE
class Set(StepType):
    type="set"; queue="control"; Config=Any_
    expression_fields=frozenset()
    def perform(self,c): return Done(c.config.get("values",{}))
class Noop(StepType):
    type="noop"; queue="cpu"; Config=Any_
    expression_fields=frozenset()
    def perform(self,c): return Done({"result":1})
A,B=Set(),Noop()
@hookimpl
def orchestrator_step_types(): return [A,B]
