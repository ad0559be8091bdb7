"""What a model is made of: the options that a user chooses, the sizes that come with the data; what of it is held."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from atlasvi.engine.model.likelihoods import LIKELIHOODS, Likelihood, LikelihoodName

Dispersion = Literal["gene", "gene-batch", "gene-label", "gene-cell"]
Where = Literal["none", "encoder", "decoder", "both"]


class ModelOptions(BaseModel):
    """The options of scvi-tools' SCVI, by its names; the defaults are those of the Tabula Sapiens model card."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    n_hidden: int = Field(default=128, ge=1)
    n_latent: int = Field(default=20, ge=1)
    n_layers: int = Field(default=3, ge=1)
    """Hidden layers of the encoder, and of the decoder."""
    dropout_rate: float = Field(default=0.05, ge=0, lt=1)
    """In the encoder; the decoder has none."""
    gene_likelihood: LikelihoodName = "nb"
    dispersion: Dispersion = "gene"
    """One inverse dispersion a gene, or one for each batch, each label, each cell (decoded) too. For the normal
    likelihood it is the standard deviation; the Poisson has none."""
    latent_distribution: Literal["normal", "ln"] = "normal"
    """ln: z is the softmax of a normal."""
    use_observed_lib_size: bool = True
    """False: the library size is latent, with a log-normal prior for each batch. A size factor wins over either."""
    log_variational: bool = True
    """The encoder sees log1p of the counts; False: the counts."""
    encode_covariates: bool = True
    """The encoder is told the covariates too, not the decoder alone."""
    deeply_inject_covariates: bool = True
    """Every layer is told the categorical covariates, not the first alone."""
    batch_representation: Literal["one-hot", "embedding"] = "one-hot"
    embedding_dim: int = Field(default=5, ge=1)
    """Length of a batch's vector where batches are embedded."""
    var_activation: Literal["exp", "softplus"] = "exp"
    """What makes the variance of q(z | x), and of a latent library, positive."""
    use_batch_norm: Where = "none"
    use_layer_norm: Where = "both"
    """Where both norms are used, batch norm comes first."""

    @property
    def likelihood(self) -> Likelihood:
        """The likelihood of the counts."""
        return LIKELIHOODS[self.gene_likelihood]


class ModelSettings(ModelOptions):
    """A model's options and the sizes of what it was made for."""

    n_genes: int = Field(ge=1)
    n_batches: int = Field(default=1, ge=1)
    """Batches to correct for; 1 means none."""
    n_labels: int = Field(default=1, ge=1)
    """Cell labels, which the dispersion gene-label alone uses."""
    n_categories: tuple[int, ...] = ()
    """Categories of each further categorical covariate."""
    n_continuous: int = Field(default=0, ge=0)
    """Continuous covariates."""
    use_size_factor: bool = False
    """The mean is size factor * softplus(logits) instead of library size * softmax(logits)."""

    @model_validator(mode="after")
    def _check_categories(self) -> Self:
        if any(n < 1 for n in self.n_categories):
            raise ValueError("a categorical covariate has at least one category")
        return self

    @property
    def has_latent_library(self) -> bool:
        """Whether the library size is inferred."""
        return not self.use_observed_lib_size and not self.use_size_factor

    @property
    def embeds_batch(self) -> bool:
        """Whether a batch is a vector of numbers, put beside the input of the first layers."""
        return self.batch_representation == "embedding"

    @property
    def n_numbers(self) -> int:
        """Numbers put beside the input of the first layers: continuous covariates, then the vector of the batch."""
        return self.n_continuous + (self.embedding_dim if self.embeds_batch else 0)

    @property
    def theta_rows(self) -> int:
        """Rows of the dispersion's table: one, or one a batch or a label; 0 where there is no table."""
        if not self.likelihood.has_dispersion or self.dispersion == "gene-cell":
            return 0
        return {"gene-batch": self.n_batches, "gene-label": self.n_labels}.get(self.dispersion, 1)

    @property
    def decodes_theta(self) -> bool:
        """Whether the decoder gives a dispersion for each cell and gene."""
        return self.dispersion == "gene-cell" and self.likelihood.has_dispersion


class Freezing(BaseModel):
    """scvi-tools' options of load_query_data, and how many categories the reference had.

    What learns by default: the columns of categories, scale and shift of the decoder's batch norm, the vectors of
    embedded batches, the encoder of a latent library. All else is held. As in scvi-tools, the model trains in
    evaluation mode, whatever is held: batch norms use the running statistics of the reference, and nothing is dropped
    out. By the statistics of a minibatch of one batch, the mean would take out again what that batch's column adds, and
    the column would never learn.

    unfrozen                    hold no parameter
    freeze_dropout              has no effect, since nothing is dropped out
    freeze_expression           False: the first layer of the encoder learns too
    freeze_decoder_first_layer  False: the first layer of the decoder learns too
    freeze_batchnorm_encoder, freeze_batchnorm_decoder  scale and shift of the batch norms
    n_batches, n_categories     of the reference: what the encoder knows of them is held, so that its latents stay
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    unfrozen: bool = False
    freeze_dropout: bool = False
    freeze_expression: bool = True
    freeze_decoder_first_layer: bool = True
    freeze_batchnorm_encoder: bool = True
    freeze_batchnorm_decoder: bool = False
    n_batches: int = 1
    n_categories: tuple[int, ...] = ()
