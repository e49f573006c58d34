"""The models, under songlab's module paths: tape.models.modeling_bert and so on."""
