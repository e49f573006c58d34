"""songlab's module paths of the models: tape.models.modeling_bert and so on. The code is elsewhere."""
